"""Pictures: learning curves, quality against latency, and any figure against another.

Colours are those of Okabe and Ito, which colour-blind readers can distinguish; markers also differ, for print without
colour.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..utils.atomic_files import atomic_file

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
# Keys of a training row and their labels in the picture; the length term is a mean over sentences.
LOSS_NAMES = {
    "loss": "total",
    "nll_loss": "target tokens",
    "encoder_loss": "source tokens",
    "ngram_loss": "n-grams",
    "length_loss": "length (per sentence)",
}
LABEL_PLACES = ((6, -11), (6, 5), (-36, 5), (-36, -11))  # beside a point, in typographic points
LABEL_SIZE = (36, 9)
STEPS = "training step (updates)"


def read_log_history(path: str | Path) -> list[dict]:
    """Rows logged by a run, from its `trainer_state.json`, its folder, or its newest checkpoint.

    Raises:
        ValueError: there is no such file, or it has no log.
    """
    path = Path(path)
    if path.is_dir():
        states = [path / "trainer_state.json", *path.glob("checkpoint-*/trainer_state.json")]
        states = [state for state in states if state.is_file()]
        if not states:
            raise ValueError(
                f"{path} holds no trainer_state.json, neither itself nor in a checkpoint: nothing to plot"
            )
        path = max(states, key=lambda state: state.stat().st_mtime)
    history = read_json(path)
    history = history.get("log_history") if isinstance(history, dict) else None
    if not history:
        raise ValueError(f"{path} has no log_history: it is not the trainer_state.json of a run that has logged")
    return history


def read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file ({error})") from None


def read_latency_rows(paths: Sequence[str | Path]) -> list[dict]:
    """Rows `{"system", "bleu", "latency_ms"}` of all files; each file holds a list of them.

    Raises:
        ValueError: a file has anything else; the message names the row.
    """
    rows = []
    for path in paths:
        content = read_json(Path(path))
        if not isinstance(content, list) or not content:
            raise ValueError(f"{path} must hold a list of rows with system, bleu and latency_ms")
        for number, row in enumerate(content, start=1):
            figures = [row.get(key) for key in ("bleu", "latency_ms")] if isinstance(row, dict) else [None]
            if not all(isinstance(value, int | float) for value in figures) or "system" not in row:
                raise ValueError(f"{path}: row {number} needs system, bleu and latency_ms (numbers)")
            if row["latency_ms"] <= 0:
                raise ValueError(f"{path}: row {number} has latency_ms={row['latency_ms']}, but it must be above 0")
        rows.extend(content)
    return rows


def series(history: Sequence[Mapping], key: str) -> tuple[list[int], list[float]]:
    """The points (step, value) of one logged figure in order of step; the last value of a step counts."""
    points = {row["step"]: row[key] for row in history if key in row and "step" in row}
    return sorted(points), [points[step] for step in sorted(points)]


@contextlib.contextmanager
def _figure(output: str | Path, num_panels: int, width: float = 5.2) -> Iterator[list]:
    """Panels to draw on; legends and grids are added and the PNG is written, complete or not at all, at the end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(width * num_panels, 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a screen, and leaves the settings of pyplot alone
    figure.get_layout_engine().set(wspace=0.06)
    panels = list(figure.subplots(1, num_panels, squeeze=False)[0])
    yield panels
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        if panel.get_legend() is None:
            _legend_above(panel)
        for line_axis in (panel.xaxis, panel.yaxis):
            if line_axis.get_scale() == "log":  # 20 and 0.5 rather than powers of ten
                line_axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                line_axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                line_axis.set_minor_formatter(NullFormatter())
    with atomic_file(output) as path:
        figure.savefig(path, format="png", dpi=150, metadata={"Software": None})  # the same bytes of every version


def _legend_above(panel) -> None:
    """A legend above the axes, where no line runs, in few enough columns not to squeeze the axes."""
    above = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "borderaxespad": 0.2}
    for columns in (3, 2, 1):
        legend = panel.legend(**above, ncols=columns, frameon=False, fontsize=8, columnspacing=1.2)
        legend.set_in_layout(False)
        panel.figure.draw_without_rendering()
        if legend.get_window_extent().width <= panel.get_window_extent().width:
            break
    legend.set_in_layout(True)


def _style(number: int) -> dict:
    """Colour and mark of line `number`; the first seven differ in both, the next seven are dashed."""
    dashes = "-" if number // 7 % 2 == 0 else "--"
    return {"color": COLOURS[number % 7], "marker": MARKS[(number + number // 7) % 7], "linestyle": dashes}


def score_label(key: str) -> str:
    """The label of a logged BLEU: "1 pass" for `eval_bleu_k1`, "beam 5" for a teacher's `eval_bleu_beam5`."""
    decoding = key.removeprefix("eval_bleu").removeprefix("_")
    if decoding.startswith("beam"):
        return f"beam {decoding.removeprefix('beam')}"
    passes = decoding.removeprefix("k")
    return f"{passes} pass{'es' if passes != '1' else ''}" if passes else "validation set"


def plot_learning_curve(history: Sequence[Mapping], output: str | Path) -> dict:
    """Every part of the loss (left) and validation BLEU (right) by training step; a PNG at `output`.

    Returns:
        The last value of each loss part and the best of each BLEU that were drawn.

    Raises:
        ValueError: the run logged neither.
    """
    keys = dict.fromkeys(key for row in history for key in row)
    losses = {key: series(history, key) for key in LOSS_NAMES if key in keys}
    scores = {key: series(history, key) for key in keys if key.startswith("eval_bleu")}
    if len(scores) > 1:
        scores.pop("eval_bleu", None)  # it repeats one of the others
    if not any(steps for steps, _ in [*losses.values(), *scores.values()]):
        raise ValueError("the log has no loss and no BLEU of any step: nothing to plot")
    with _figure(output, 1 + bool(scores)) as panels:
        for number, (key, points) in enumerate(losses.items()):
            every = max(1, len(points[0]) // 8)
            panels[0].plot(
                *points, label=LOSS_NAMES[key], markersize=4, linewidth=1.5, markevery=every, **_style(number)
            )
        panels[0].set_yscale("log" if all(value > 0 for _, line in losses.values() for value in line) else "linear")
        panels[0].set(xlabel=STEPS, ylabel="training loss (nats per masked target token)")
        for number, (key, points) in enumerate(scores.items()):
            panels[1].plot(*points, label=score_label(key), markersize=4, linewidth=1.5, **_style(number))
        if scores:
            panels[1].set(xlabel=STEPS, ylabel="validation sacreBLEU (0 to 100)")
    last = {key: values[-1] for key, (_, values) in losses.items() if values}
    return {**last, **{f"best_{key}": max(values) for key, (_, values) in scores.items() if values}}


def _free_place(panel, point: tuple[float, float], taken: list[tuple[float, float]]) -> tuple[int, int]:
    """A place for a short label beside `point` that hides none of those in `taken`, in points; it is added to them."""
    width, height = LABEL_SIZE
    x, y = panel.transData.transform(point) * 72 / panel.figure.dpi

    def is_free(place: tuple[int, int]) -> bool:
        return all(abs(x + place[0] - left) >= width or abs(y + place[1] - low) >= height for left, low in taken)

    place = next(filter(is_free, LABEL_PLACES), LABEL_PLACES[0])
    taken.append((x + place[0], y + place[1]))
    return place


def plot_bleu_against_latency(rows: Sequence[Mapping], output: str | Path) -> dict:
    """BLEU against milliseconds per sentence (logarithmic); the points of one system are joined. A PNG at `output`.

    A grey line joins the Pareto front: the points for which no other is both faster and better. A row may have a
    `label`, such as "k = 4", which is written beside its point, and `bleu_interval` and `latency_quartiles_ms` (low,
    high), which are drawn as bars.

    Returns:
        The numbers of systems and points, and the front: indices of rows from the fastest to the best.
    """
    from matplotlib.patheffects import withStroke

    systems: dict[str, list[Mapping]] = {}
    for row in rows:
        systems.setdefault(row["system"], []).append(row)
    halo = [withStroke(linewidth=2.5, foreground="white")]  # readable where another line runs behind
    with _figure(output, 1, width=8.0) as panels:
        for number, (system, points) in enumerate(systems.items()):
            points = sorted(points, key=lambda row: row["latency_ms"])
            times, scores = [row["latency_ms"] for row in points], [row["bleu"] for row in points]
            panels[0].plot(times, scores, label=system, markersize=7, linewidth=1.4, **_style(number))
            for row in points:
                _draw_intervals(panels[0], row, _style(number)["color"])
        front = pareto_front(rows)
        front_line = [[rows[index][key] for index in front] for key in ("latency_ms", "bleu")]
        panels[0].plot(*front_line, label="Pareto front", color="0.75", linewidth=6, zorder=0, drawstyle="steps-post")
        panels[0].set_xscale("log")
        panels[0].margins(x=0.1, y=0.12)
        panels[0].autoscale_view()  # fixes the positions of the points on the page
        taken: list[tuple[float, float]] = []
        for number, points in enumerate(systems.values()):
            for row in points:
                if row.get("label"):
                    panels[0].annotate(
                        row["label"],
                        (row["latency_ms"], row["bleu"]),
                        xytext=_free_place(panels[0], (row["latency_ms"], row["bleu"]), taken),
                        textcoords="offset points",
                        fontsize=8,
                        color=_style(number)["color"],
                        path_effects=halo,
                        zorder=5,
                    )
        panels[0].set(xlabel="latency (milliseconds per sentence, one at a time)", ylabel="sacreBLEU (0 to 100)")
        panels[0].legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=9)  # off the points
    return {"systems": len(systems), "points": len(rows), "front": front}


def pareto_front(rows: Sequence[Mapping]) -> list[int]:
    """Indices of the rows that no other row equals or beats in speed and quality, from the fastest to the best."""
    front: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: (rows[index]["latency_ms"], -rows[index]["bleu"])):
        if not front or rows[index]["bleu"] > rows[front[-1]]["bleu"]:
            front.append(index)
    return front


def _draw_intervals(panel, row: Mapping, color: str) -> None:
    """Bars in both directions, if the row has intervals for them."""
    point = (row["latency_ms"], row["bleu"])
    for key, axis, value in (("latency_quartiles_ms", "xerr", point[0]), ("bleu_interval", "yerr", point[1])):
        if key in row:
            low, high = row[key]
            error = [[max(0.0, value - low)], [max(0.0, high - value)]]
            panel.errorbar(*point, **{axis: error}, color=color, elinewidth=0.8, capsize=2, alpha=0.5, fmt="none")


@dataclass(frozen=True)
class Panel:
    """One set of axes. `lines` are x and y values by the name in the legend; `ticks` name the x values 0, 1, ..."""

    xlabel: str
    ylabel: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    ticks: Sequence[str] = ()


def plot_lines(panels: Sequence[Panel], output: str | Path) -> None:
    """Panels side by side, each with its lines, on one scale if they show the same figure; a PNG at `output`."""
    with _figure(output, len(panels)) as axes:
        for panel, axis in zip(panels, axes, strict=True):
            if axis is not axes[0] and panel.ylabel == panels[0].ylabel:
                axis.sharey(axes[0])
            for number, (label, points) in enumerate(panel.lines.items()):
                axis.plot(*points, label=label, markersize=5, linewidth=1.5, **_style(number))
            axis.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
            if panel.ticks:
                axis.margins(x=0.08)
                axis.set_xticks(range(len(panel.ticks)), panel.ticks, fontsize=9)
