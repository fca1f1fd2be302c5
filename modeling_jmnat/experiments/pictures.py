"""Pictures of a suite, drawn from the results that are there so far."""

from collections.abc import Sequence
from pathlib import Path

from ..evaluation.plots import Panel, plot_lines, read_log_history, series
from .systems import FROZEN_NATS, NAT_SCRATCH
from .tables import STATE_NOISE_LABELS, evaluations_of, word_noise_systems


def noise_lines(systems: Sequence[tuple[str, list[dict]]]) -> dict[str, tuple[list[float], list[float]]]:
    """BLEU by noise level of the first evaluation of each system."""
    lines = {}
    for label, evaluations in systems:
        if evaluations:
            rows = evaluations[0]["results"]
            lines[label] = ([row["noise_level"] for row in rows], [row["sacrebleu"] for row in rows])
    return lines


def figure1(output: Path) -> list[Panel]:
    """Convergence with a frozen half (left), noise on the states (right)."""
    curves = {}
    for student in (NAT_SCRATCH, *FROZEN_NATS):
        run = output / f"{student.name}-1"
        if run.is_dir() and any(run.rglob("trainer_state.json")):
            points = series(read_log_history(run), "eval_bleu")
            if points[0]:
                curves[student.label] = points
    systems = [
        (f"noise on {label}", evaluations_of(output, NAT_SCRATCH.name, f".{place}"))
        for place, label in STATE_NOISE_LABELS.items()
    ]
    return [
        Panel("training step (updates)", "validation sacreBLEU (0 to 100)", curves),
        Panel("noise (share of the states' size)", "validation sacreBLEU (0 to 100)", noise_lines(systems)),
    ]


def figure3(output: Path) -> list[Panel]:
    """BLEU against the share of source words that were dropped (left) or replaced (right)."""
    return [
        Panel(
            f"source words {verb} (%)",
            "validation sacreBLEU (0 to 100)",
            {
                label: ([100 * level for level in levels], bleu)
                for label, (levels, bleu) in noise_lines(word_noise_systems(output, noise)).items()
            },
        )
        for noise, verb in (("drop", "dropped"), ("replace", "replaced"))
    ]


PICTURES = {"figure1": figure1, "figure3": figure3}


def write_pictures(output: Path, suites: Sequence[str]) -> list[Path]:
    """Draw `results/SUITE.png` for each suite that has a picture and results; returns the paths."""
    written = []
    for suite in suites:
        panels = [panel for panel in PICTURES.get(suite, lambda _: [])(output) if panel.lines]
        if panels:
            written.append(output / "results" / f"{suite}.png")
            plot_lines(panels, written[-1])
    return written
