"""Where a translation by ONNX Runtime spends its time, which shows what could make it faster.

Shares are of the time inside operators and in Python. Recording takes about 7 microseconds per operator, as long as a
small operator itself. It cannot be told from the time between operators, which is therefore left out. Part of it falls
inside operators, so shares of many small operators are overstated.
"""

import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig

from ..inference.loading import NO_FOREIGN_CODE
from ..inference.onnx_runtime import GRAPHS, PASS, TRANSLATOR, find_graphs, graph_file, load_session
from ..utils.markdown import markdown
from .systems import System, load_engine

# Operators of the passes by purpose: an operator belongs to the first group with a word of its name.
OPERATORS = {
    "matrix products": ("MatMul", "Gemm"),
    "best words": ("Softmax", "ReduceMax", "ArgMax", "GatherND"),
    "attention": ("Attention",),
    "layer norm": ("LayerNorm",),
    "masks": ("TopK", "Elements", "Less", "Where"),
}
PRODUCTS = "matrix products"
GROUPS = (*OPERATORS, "other operators")
OUTSIDE_OF_PASSES = "encoder, lengths, choice"
PARTS = (OUTSIDE_OF_PASSES, *GROUPS, "Python")
NOTE = """
Shares of the time inside operators and in Python. Recording takes about 7 microseconds for each operator: shares of
many small ones are overstated. The last four columns are of the passes' matrix products, for a sentence: without
anything else a translation would still take their time. "Alone" is the speed of the first product of a feed-forward
block, with 100 tokens, over and over.
"""
PLAIN_ROWS, PLAIN_TIMES, PLAIN_ROUNDS = 100, 50, 5
CONTAINERS = ("Loop", "If", "Scan")  # their time is already counted by the operators inside


def group_of(operator: str) -> str:
    return next((group for group, words in OPERATORS.items() if any(w in operator for w in words)), GROUPS[-1])


def multiplications(arguments: dict) -> int:
    """Multiplications of a recorded matrix product: each output is a sum over the last axis of the first input."""
    (first, *_), (output,) = arguments["input_type_shape"], arguments["output_type_shape"]
    (inputs,), (outputs,) = first.values(), output.values()
    return math.prod(outputs) * inputs[-1]


def read_events(path: Path, only_passes: bool) -> tuple[float, dict[str, float], int]:
    """Seconds of all runs of a recorded session and of its operators, those of the passes by group.

    Also the number of multiplications in the passes' matrix products.

    Args:
        only_passes: whether the whole graph is a pass; otherwise the names of nodes tell which ones are.
    """
    total, count, seconds = 0.0, 0, dict.fromkeys((OUTSIDE_OF_PASSES, *GROUPS), 0.0)
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event["name"] == "model_run":
            total += event["dur"] / 1e6
        elif event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            operator = event["args"]["op_name"]
            in_pass = only_passes or f"{PASS}_" in event["name"]  # fused operators have longer names
            if operator in CONTAINERS:
                continue
            group = group_of(operator) if in_pass else OUTSIDE_OF_PASSES
            seconds[group] += event["dur"] / 1e6
            if group == PRODUCTS:
                count += multiplications(event["args"])
    return total, seconds, count


def profile(system: System, sources: Sequence[Sequence[int]], num_threads: int) -> tuple[dict[str, float], int]:
    """Seconds of each of `PARTS` for translating `sources` one by one with a `system` of ONNX Runtime.

    And the number of multiplications in the passes' matrix products.
    """
    engine = load_engine(system, num_threads)
    folder = find_graphs(system.folder, system.int8)
    engine.translate(engine.prepare(sources[:1]), system.options)  # fill the caches kept between sentences
    graphs = [part for part in (TRANSLATOR, *GRAPHS) if part in vars(engine.model)]
    with tempfile.TemporaryDirectory() as records:
        for part in graphs:
            path = folder / graph_file(part, system.int8)
            setattr(engine.model, part, load_session(path, num_threads, Path(records) / part))
        start = time.perf_counter()
        for source in sources:
            engine.translate(engine.prepare([source]), system.options)
        in_python = time.perf_counter() - start
        count, seconds = 0, dict.fromkeys((OUTSIDE_OF_PASSES, *GROUPS), 0.0)
        for part in graphs:
            total, of_operators, of_products = read_events(
                Path(getattr(engine.model, part).end_profiling()), part == "decoder"
            )
            seconds = {name: seconds[name] + of_operators[name] for name in seconds}
            in_python -= total
            count += of_products
    return {**seconds, "Python": in_python}, count


def plain_product_speed(system: System, num_threads: int) -> float:
    """Multiplications per second of the first linear layer of a feed-forward block, on `PLAIN_ROWS` states at once."""
    from ..onnx_export.graph_writer import GraphWriter

    config = AutoConfig.from_pretrained(system.folder, **NO_FOREIGN_CODE)
    width, inner, int8 = config.d_model, config.decoder_ffn_dim, system.int8
    graph = GraphWriter("product", int8)
    states = torch.randn(PLAIN_ROWS, width)
    linear = torch.nn.Linear(width, inner)
    product = graph.linear(graph.input("states", states.shape), linear.weight, linear.bias)
    graph.output("product", product, (PLAIN_ROWS, inner))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product.onnx"
        path.write_bytes(graph.model({}).SerializeToString())
        session = load_session(path, num_threads)
    seconds = []
    for _ in range(PLAIN_ROUNDS):
        start = time.perf_counter()
        for _ in range(PLAIN_TIMES):
            session.run(None, {"states": states.numpy()})
        seconds.append(time.perf_counter() - start)
    return PLAIN_TIMES * PLAIN_ROWS * width * inner / min(seconds)


def profile_table(systems: Sequence[System], sources: Sequence[Sequence[int]], num_threads: int) -> str:
    """A Markdown table with the share of each part for each of `systems`; operator groups are those of the passes."""
    rows, alone = [], {}
    for system in systems:
        if system.model_key not in alone:
            alone[system.model_key] = plain_product_speed(system, num_threads)
        seconds, count = profile(system, sources, num_threads)
        total, of_products = sum(seconds.values()), seconds[PRODUCTS]
        cells = [f"{1000 * of_products / len(sources):.1f}", f"{count / len(sources) / 1e9:.2f}"]
        cells += [f"{speed / 1e9:.0f}" for speed in (count / of_products, alone[system.model_key])]
        rows.append([system.title, *(f"{seconds[part] / total:.0%}" for part in PARTS), *cells])
    return markdown(("system", *PARTS, "products, ms", "GMAC", "GMAC/s", "alone"), rows) + NOTE
