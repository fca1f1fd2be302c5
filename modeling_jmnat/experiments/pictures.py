"""Pictures of a suite, drawn from the rows of results so far."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ..evaluation.plots import Panel, plot_lines
from .rows import TRAINING, run_rows, select
from .systems import FROZEN_NATS, NAT_SCRATCH
from .tables import STATE_NOISE_LABELS, WORD_NOISE_SYSTEMS, chosen_on, splits_of

BLEU = "sacreBLEU (0 to 100)"
Points = tuple[list[float], list[float]]


def noise_line(rows: Sequence[dict], factor: float = 1.0, **conditions) -> Points:
    """BLEU by noise level (times `factor`) of the first seed of one system."""
    of = select(chosen_on(rows), **conditions)
    of = sorted(select(of, seed=of[0]["seed"]) if of else [], key=lambda row: row["noise_level"])
    return [factor * row["noise_level"] for row in of], [row["sacrebleu"] for row in of]


def curve(rows: Sequence[dict], name: str = "eval_bleu", **conditions) -> Points:
    """A logged figure by step, from the first training that matches."""
    logs = [row["log"] for row in select(rows, variant=TRAINING, **conditions)]
    points = logs[0].get(name, []) if logs else []
    return [step for step, _ in points], [value for _, value in points]


def drawn(lines: dict[str, Points]) -> dict[str, Points]:
    """Lines that have points."""
    return {label: points for label, points in lines.items() if points[0]}


def figure1(rows: Sequence[dict]) -> list[Panel]:
    """Convergence with a frozen half (left), noise on the states (right)."""
    split = next(iter(splits_of(rows)), "")
    curves = {student.label: curve(rows, system=student.name, seed=1) for student in (NAT_SCRATCH, *FROZEN_NATS)}
    noises = {
        f"noise on {label}": noise_line(rows, system=NAT_SCRATCH.name, variant=place)
        for place, label in STATE_NOISE_LABELS.items()
    }
    return [
        Panel("training step (updates)", f"validation {BLEU}", drawn(curves)),
        Panel("noise (share of the states' size)", f"{split} {BLEU}", drawn(noises)),
    ]


def figure3(rows: Sequence[dict]) -> list[Panel]:
    """BLEU against the share of source words that were dropped (left) or replaced (right)."""
    split = next(iter(splits_of(rows)), "")
    return [
        Panel(
            f"source words {verb} (%)",
            f"{split} {BLEU}",
            drawn(
                {
                    label: noise_line(rows, 100, system=system, variant=noise)
                    for system, label in WORD_NOISE_SYSTEMS.items()
                }
            ),
        )
        for noise, verb in (("drop", "dropped"), ("replace", "replaced"))
    ]


PICTURES: dict[str, Callable[[Sequence[dict]], list[Panel]]] = {"figure1": figure1, "figure3": figure3}


def write_pictures(output: Path, suites: Sequence[str]) -> list[Path]:
    """Draw `results/SUITE.png` for each suite that has a picture and results; returns the paths."""
    rows, written = run_rows(output), []
    for suite in suites:
        panels = [panel for panel in PICTURES.get(suite, lambda _: [])(rows) if panel.lines]
        if panels:
            written.append(output / "results" / f"{suite}.png")
            plot_lines(panels, written[-1])
    return written
