"""Speeds that the project has set itself against good autoregressive engines, and whether a benchmark reached them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..utils.markdown import markdown
from .systems import CTRANSLATE2_BEAM, CTRANSLATE2_GREEDY, TRANSFORMERS_BEAM
from .timing import RATIO_NOTE

OURS = "JM-NAT ONNX int8"
BLEU_TO_LOSE = 0.1  # by rules that save work, against the same k and C without them


@dataclass(frozen=True)
class Bar:
    """Times faster than `reference` at batch 1, with C candidates: {size: {k: times}}."""

    reference: str
    candidates: int
    goals: dict[str, dict[int, float]]


BARS = (
    Bar(TRANSFORMERS_BEAM, 4, {"small": {4: 13.5, 10: 5.73}, "base": {4: 13.5, 10: 5.73}}),
    Bar(CTRANSLATE2_BEAM, 4, {"small": {4: 2.0, 10: 1.2}, "base": {4: 3.0, 10: 1.5}}),
    Bar(CTRANSLATE2_GREEDY, 1, {"small": {4: 1.3, 10: 0.8}, "base": {4: 2.5, 10: 1.3}}),
)
# Throughput of small at the common batch size: reference, C, k, goal.
BATCH_BAR = (CTRANSLATE2_BEAM, 1, 4, 1.5)


def eligible(rows: Sequence[dict], candidates: int, passes: int) -> list[dict]:
    """Our rows with at most k passes: without rules, and with rules that lose no more than `BLEU_TO_LOSE`."""
    name, plain = f"{OURS}, C = {candidates}", f"k = {passes}"
    ours = [row for row in rows if row["system"] == name and row["label"].split(",")[0] == plain]
    bleu = next((row.get("bleu") for row in ours if row["label"] == plain), None)
    return [
        row
        for row in ours
        if row["label"] == plain or (bleu is not None and row.get("bleu", -1.0) >= bleu - BLEU_TO_LOSE - 1e-9)
    ]


def speed_range(row: dict, name: str, reference: str) -> tuple[float, float] | None:
    """Lowest and highest ratio that a row may have: twice the ratio itself, or its rounds where they do not agree.

    None: not measured, or in too few rounds.
    """
    ratio = row.get(name, {}).get(reference)
    found = row.get(f"{name}_rounds", {}).get(reference) if ratio is None else (ratio, ratio)
    return None if found is None else tuple(found)


def bars_table(rows: Sequence[dict], size: str) -> str:
    """What was set and what was found, a line per bar; the fastest of our settings that count.

    Where rounds do not agree on a ratio (see `benchmark.spread`), the lowest and the highest stand there, and a bar is
    reached, or not, when all of them are on one side of it.
    """
    lines = []

    def add(reference: str, candidates: int, passes: int, goal: float, name: str, what: str) -> None:
        found = [
            (speeds, row["label"])
            for row in eligible(rows, candidates, passes)
            if (speeds := speed_range(row, name, reference)) is not None
        ]
        cells = [reference + what, f"C = {candidates}, k = {passes}", f"{goal:g}", "not measured", ""]
        if found:
            reached = max(found)[0][0] >= goal
            (low, high), label = max(found, key=lambda item: item[0] if reached else item[0][::-1])
            cells[1] = f"C = {candidates}, {label}"
            cells[3] = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
            cells[4] = "yes" if reached else "no" if high < goal else "undecided"
        lines.append(cells)

    for bar in BARS:
        for passes, goal in bar.goals[size].items():
            add(bar.reference, bar.candidates, passes, goal, "speed_up", ", batch 1")
    if size == "small":
        reference, candidates, passes, goal = BATCH_BAR
        sizes = {row["batch_size"] for row in rows if "batch_size" in row}
        add(reference, candidates, passes, goal, "batch_speed_up", f", batch {max(sizes, default='')}")
    return markdown(("times faster than", "setting", "goal", "found", "reached"), lines) + RATIO_NOTE
