"""Where the time of a translation by ONNX Runtime goes, which tells what could make it faster.

Recording costs time itself: what is wanted are the shares, not the sum.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .benchmark_systems import ONNXEngine, System
from .onnx_model import GRAPHS, find_graphs, graph_file, load_session
from .suite_tables import markdown

# Operators of the decoder by what they are for: the first group of which a word is in an operator's name.
OPERATORS = {
    "matrix products": ("MatMul", "Gemm"),
    "best words": ("LogSoftmax", "ReduceMax", "ArgMax", "TopK", "GatherND"),
    "attention": ("Attention", "Softmax"),
    "layer norm": ("LayerNorm",),
}
GROUPS = (*OPERATORS, "other operators")
PARTS = ("encoder", *GROUPS, "between operators", "outside of the graphs")


def group_of(operator: str) -> str:
    return next((group for group, words in OPERATORS.items() if any(w in operator for w in words)), GROUPS[-1])


def read_events(path: Path) -> tuple[float, dict[str, float]]:
    """Seconds of all runs of a recorded session, and of its operators by group."""
    total, groups = 0.0, dict.fromkeys(GROUPS, 0.0)
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event["name"] == "model_run":
            total += event["dur"] / 1e6
        elif event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            groups[group_of(event["args"]["op_name"])] += event["dur"] / 1e6
    return total, groups


def profile(system: System, sources: Sequence[Sequence[int]], num_threads: int) -> dict[str, float]:
    """Seconds of each of `PARTS` for translating `sources` one by one with a `system` of ONNX Runtime."""
    engine = ONNXEngine(system.folder, system.int8, num_threads)
    folder = find_graphs(system.folder, system.int8)
    engine.translate(engine.prepare(sources[:1]), system.options)  # what is kept between sentences is there now
    with tempfile.TemporaryDirectory() as records:
        for part in GRAPHS:
            path = folder / graph_file(part, system.int8)
            setattr(engine.model, part, load_session(path, num_threads, Path(records) / part))
        start = time.perf_counter()
        for source in sources:
            engine.translate(engine.prepare([source]), system.options)
        seconds = time.perf_counter() - start
        events = {part: read_events(Path(getattr(engine.model, part).end_profiling())) for part in GRAPHS}
    (encoder, _), (decoder, groups) = (events[part] for part in GRAPHS)
    return {
        "encoder": encoder,
        **groups,
        "between operators": decoder - sum(groups.values()),
        "outside of the graphs": seconds - encoder - decoder,
    }


def profile_table(systems: Sequence[System], sources: Sequence[Sequence[int]], num_threads: int) -> str:
    """The share of each part for each of `systems`, as markdown; all but the first and the last are the decoder's."""
    rows = []
    for system in systems:
        seconds = profile(system, sources, num_threads)
        total = sum(seconds.values())
        rows.append([system.title, *(f"{seconds[part] / total:.0%}" for part in PARTS)])
    return markdown(("system", *PARTS), rows)
