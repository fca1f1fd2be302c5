"""Where the time of a translation by ONNX Runtime goes, which tells what could make it faster.

Shares are of the time inside operators and in Python. Recording takes about 7 microseconds for each operator, as much
as many a small one: what lies between them cannot be told from it and is left out, and part of it is inside them, so
that shares of many small operators are overstated.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .benchmark_systems import ONNXEngine, System
from .markdown import markdown
from .onnx_model import GRAPHS, PASS, TRANSLATOR, find_graphs, graph_file, load_session

# Operators of the passes by what they are for: the first group of which a word is in an operator's name.
OPERATORS = {
    "matrix products": ("MatMul", "Gemm"),
    "best words": ("Softmax", "ReduceMax", "ArgMax", "GatherND"),
    "attention": ("Attention",),
    "layer norm": ("LayerNorm",),
    "masks": ("TopK", "Elements", "Less", "Where"),
}
GROUPS = (*OPERATORS, "other operators")
OUTSIDE_OF_PASSES = "encoder, lengths, choice"
PARTS = (OUTSIDE_OF_PASSES, *GROUPS, "Python")
NOTE = """
Shares of the time inside operators and in Python. Recording takes about 7 microseconds for each operator: shares of
many small ones are overstated.
"""
CONTAINERS = ("Loop", "If")  # their time is that of the operators inside


def group_of(operator: str) -> str:
    return next((group for group, words in OPERATORS.items() if any(w in operator for w in words)), GROUPS[-1])


def read_events(path: Path, only_passes: bool) -> tuple[float, dict[str, float]]:
    """Seconds of all runs of a recorded session, and of its operators: those of the passes by group.

    Args:
        only_passes: whether the graph is a pass; else the names of its nodes tell.
    """
    total, seconds = 0.0, dict.fromkeys((OUTSIDE_OF_PASSES, *GROUPS), 0.0)
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event["name"] == "model_run":
            total += event["dur"] / 1e6
        elif event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            operator = event["args"]["op_name"]
            in_pass = only_passes or f"{PASS}_" in event["name"]  # fused operators have longer names
            if operator not in CONTAINERS:
                seconds[group_of(operator) if in_pass else OUTSIDE_OF_PASSES] += event["dur"] / 1e6
    return total, seconds


def profile(system: System, sources: Sequence[Sequence[int]], num_threads: int) -> dict[str, float]:
    """Seconds of each of `PARTS` for translating `sources` one by one with a `system` of ONNX Runtime."""
    engine = ONNXEngine(system.folder, system.int8, num_threads)
    folder = find_graphs(system.folder, system.int8)
    engine.translate(engine.prepare(sources[:1]), system.options)  # what is kept between sentences is there now
    graphs = [part for part in (TRANSLATOR, *GRAPHS) if part in vars(engine.model)]
    with tempfile.TemporaryDirectory() as records:
        for part in graphs:
            path = folder / graph_file(part, system.int8)
            setattr(engine.model, part, load_session(path, num_threads, Path(records) / part))
        start = time.perf_counter()
        for source in sources:
            engine.translate(engine.prepare([source]), system.options)
        in_python = time.perf_counter() - start
        seconds = dict.fromkeys((OUTSIDE_OF_PASSES, *GROUPS), 0.0)
        for part in graphs:
            total, of_operators = read_events(Path(getattr(engine.model, part).end_profiling()), part == "decoder")
            seconds = {name: seconds[name] + of_operators[name] for name in seconds}
            in_python -= total
    return {**seconds, "Python": in_python}


def profile_table(systems: Sequence[System], sources: Sequence[Sequence[int]], num_threads: int) -> str:
    """The share of each part for each of `systems`, as markdown; the groups of operators are the passes'."""
    rows = []
    for system in systems:
        seconds = profile(system, sources, num_threads)
        total = sum(seconds.values())
        rows.append([system.title, *(f"{seconds[part] / total:.0%}" for part in PARTS)])
    return markdown(("system", *PARTS), rows) + NOTE
