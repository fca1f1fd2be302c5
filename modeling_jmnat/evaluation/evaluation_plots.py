"""Pictures from results of `evaluate.py`: BLEU of short and of long sentences, and BLEU under noise."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .plots import Panel, plot_lines, read_json

MIN_SENTENCES = 20  # BLEU of fewer sentences is meaningless and is not drawn
SCORE = "sacreBLEU (0 to 100)"
SCORING = ("reference", "lowercase", "bleu_tokenize")  # settings without which scores cannot be compared
COLUMNS = {"noise_level": "with --noise", "sacrebleu": "with sacrebleu among its --metrics"}  # what makes them
# For each kind of noise, the axis label and the factor of its levels.
NOISE_AXES = {
    "drop": ("source words dropped (%)", 100),
    "replace": ("source words replaced (%)", 100),
    "encoder_input": ("noise on the encoder input (% of the embeddings' size)", 100),
    "encoder_output": ("noise on the encoder output (% of the states' size)", 100),
    "decoder_input": ("noise on the decoder input (% of the embeddings' size)", 100),
}


def read_evaluations(paths: Sequence[str | Path], *columns: str) -> dict[Path, dict]:
    """Reports of `evaluate.py` that have these columns, by file.

    Raises:
        ValueError: a file is no such report, or lacks a column; the message says how to get it.
    """
    reports = {}
    for path in map(Path, paths):
        report = read_json(path)
        if not isinstance(report, dict) or not {"settings", "results"} <= report.keys() or not report["results"]:
            raise ValueError(f"{path} was not written by `jmnat evaluate --output`: it has no settings and results")
        for column in columns:
            if any(column not in row for row in report["results"]):
                raise ValueError(f"{path} has no {column}: run `jmnat evaluate` {COLUMNS.get(column, 'again')}")
        reports[path] = report
    return reports


def by_panel(reports: Mapping[Path, dict], *names: str) -> dict[tuple, dict[Path, dict]]:
    """The reports by the values of these settings, a panel for each.

    Raises:
        ValueError: two reports of a panel were scored in different ways.
    """
    panels: dict[tuple, dict[Path, dict]] = {}
    for path, report in reports.items():
        of_panel = panels.setdefault(tuple(report["settings"][name] for name in names), {})
        of_panel[path] = report
        other, first = next(iter(of_panel.items()))
        for name in SCORING:
            one, two = (str(each["settings"].get(name) or None).removesuffix(".gz") for each in (first, report))
            if one != two:
                raise ValueError(
                    f"{other} and {path} cannot be compared, their {name} is {one} and {two}: evaluate them alike"
                )
    return panels


def name_of(report: dict, row: dict) -> str:
    """The label of a row in a legend: "jm-1, k = 4", "teacher, beam 5"."""
    model = report["settings"]["model"]
    if "num_iterations" in row:
        decoding = f"k = {row['num_iterations']}"
    else:
        decoding = "greedy" if row["num_beams"] == 1 else f"beam {row['num_beams']}"
    reranked = ", reranked" if report["settings"].get("reranker") else ""
    return f"{model}, {decoding}{reranked}"


def named_rows(reports: Mapping[Path, dict]) -> Iterator[tuple[str, dict]]:
    """The rows of the reports of one panel by name; the name includes the file if models share it."""
    names = [{name_of(report, row) for row in report["results"]} for report in reports.values()]
    shared = Counter(name for of_report in names for name in of_report)
    stems = Counter(path.stem for path in reports)
    for path, report in reports.items():
        file = path.stem if stems[path.stem] == 1 else str(path)
        for row in report["results"]:
            name = name_of(report, row)
            yield f"{name} ({file})" if shared[name] > 1 else name, row


def length_panel(source: str, rows: Sequence[tuple[str, dict]]) -> Panel:
    """BLEU of groups of sentences of the text `source` by their number of source words, a line for each named row.

    Raises:
        ValueError: no group has `MIN_SENTENCES`.
    """
    groups = {
        name: group["sentences"]
        for name, group in rows[0][1]["by_source_words"].items()
        if group["sentences"] >= MIN_SENTENCES
    }
    if not groups:
        raise ValueError(f"{source}: no group of lengths has {MIN_SENTENCES} sentences, use a longer test set")
    lines = {}
    for label, row in rows:
        known = [(place, row["by_source_words"].get(name)) for place, name in enumerate(groups)]
        known = [(place, group["sacrebleu"]) for place, group in known if group is not None]
        lines[label] = ([place for place, _ in known], [score for _, score in known])
    ticks = [f"{name.replace('-', '–')}\nn = {count}" for name, count in groups.items()]
    return Panel(f"words per source sentence ({source}; n sentences)", SCORE, lines, ticks)


def plot_bleu_by_length(paths: Sequence[str | Path], output: str | Path) -> dict:
    """BLEU of groups of sentences by their number of source words, a panel per test set; a PNG at `output`.

    Returns:
        The numbers of panels and lines.

    Raises:
        ValueError: the files are not reports of `evaluate.py`, or not comparable, or no group has `MIN_SENTENCES`.
    """
    drawn = []
    for (source, _), reports in by_panel(read_evaluations(paths, "by_source_words"), "source", "sentences").items():
        rows = [
            (f"{name}, noise {row['noise_level']:g}" if row.get("noise_level") else name, row)
            for name, row in named_rows(reports)
        ]
        drawn.append(length_panel(source, rows))
    plot_lines(drawn, output)
    return {"panels": len(drawn), "lines": sum(len(panel.lines) for panel in drawn)}


def plot_bleu_under_noise(paths: Sequence[str | Path], output: str | Path) -> dict:
    """BLEU against the level of noise, a panel per kind of noise and test set; a PNG at `output`.

    Returns:
        The numbers of panels and lines.

    Raises:
        ValueError: the files are not reports of `evaluate.py --noise`, or not comparable.
    """
    panels = []
    of_panels = by_panel(read_evaluations(paths, "noise_level", "sacrebleu"), "noise", "source", "sentences")
    one_text = len({(source, count) for _, source, count in of_panels}) == 1
    for (kind, source, _), reports in of_panels.items():
        xlabel, factor = NOISE_AXES[kind]
        xlabel += "" if one_text else f", {source}"
        systems: dict[str, list[tuple[float, float]]] = {}
        for name, row in named_rows(reports):
            systems.setdefault(name, []).append((factor * row["noise_level"], row["sacrebleu"]))
        lines = {name: tuple(zip(*sorted(points), strict=True)) for name, points in systems.items()}
        panels.append(Panel(xlabel, SCORE, lines))
    plot_lines(panels, output)
    return {"panels": len(panels), "lines": sum(len(panel.lines) for panel in panels)}
