"""Tables and pictures of a Markdown file in a folder of results, which a comment in front of each declares in YAML.

    <!-- table
    rows: {run: multi30k_tiny/teacher_3600/updates_9600, split: test}
    lines:
      JM-NAT, a1 = 1: {system: jm_both_encoder_weight_1, variant: independent}
      CM-NAT: {system: cm_both, variant: ""}
    columns:
      k = 4: {show: sacrebleu, num_iterations: 4}
      repeated words: {show: repeated_tokens_per_sentence, num_iterations: 4, digits: 2}
    -->
    the table, which is written anew
    <!-- end -->

`rows` are the rows that the table is made of, in this folder's results.jsonl or in the files named by `from`. A cell
is the mean of the rows that have the values of its line and its column, with the lowest and the highest seed of
several; they may differ in nothing but their seeds. `lines: {each: title}` makes a line for each value. In place of
lines and columns, `kind` names a table of `reproduce` or of a benchmark. Rows of the variant "tried" are what a choice
of a decoding compared. A comment `<!-- picture` gives the `file`, a `kind` and `rows`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.evaluation_plots import length_panel
from ..evaluation.plots import STEPS, Panel, plot_bleu_against_latency, plot_lines
from ..utils.atomic_files import atomic_text_file
from ..utils.json_files import read_json_lines
from ..utils.markdown import markdown
from .pictures import BLEU, PICTURES, curve, drawn
from .rows import KEYS, TRIED, select, tried_rows
from .stored_results import RESULTS
from .tables import TABLES, cell

TABLE = re.compile(r"(<!-- table\n(.*?)-->\n).*?(<!-- end -->)", re.DOTALL)
PICTURE = re.compile(r"<!-- picture\n(.*?)-->", re.DOTALL)
PARTS = {"table": {"from", "kind", "rows", "lines", "columns"}, "picture": {"file", "from", "kind", "rows", "lines"}}


def write_document(path: Path) -> bool:
    """Regenerate the tables and pictures of a Markdown file; returns whether its text has changed.

    Raises:
        ValueError: a comment asks for something that does not exist; the message names the file and the comment.
    """
    old = path.read_text(encoding="utf-8")
    for found in PICTURE.finditer(old):
        write_picture(path, declared(path, found[1], "picture"))
    new = TABLE.sub(lambda found: f"{found[1]}{table_of(path, declared(path, found[2], 'table'))}{found[3]}", old)
    if new != old:
        with atomic_text_file(path) as file:
            file.write(new)
    return new != old


def declared(path: Path, comment: str, kind: str) -> dict[str, Any]:
    """The declaration in a comment; ValueError if it is not valid."""
    import yaml

    try:
        asked = yaml.safe_load(comment)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: a {kind} must be declared in YAML ({' '.join(str(error).split())})") from None
    needed = {"file", "kind"} if kind == "picture" else set()
    if isinstance(asked, dict) and "lines" in asked and kind == "table":
        needed = {"lines", "columns"}
    if not isinstance(asked, dict) or not needed <= asked.keys() <= PARTS[kind]:
        raise ValueError(
            f"{path}: a {kind} must be declared by {', '.join(sorted(PARTS[kind]))}, not by {comment.strip()!r}"
        )
    return asked


def rows_of(path: Path, asked: Mapping[str, Any]) -> list[dict]:
    """The rows that a table or picture is made from.

    Raises:
        ValueError: there are none.
    """
    files = asked.get("from", RESULTS)
    files = [files] if isinstance(files, str) else files
    rows = [row for file in files for row in read_json_lines(path.parent / file)]
    if asked.get("rows", {}).get("variant") == TRIED:
        rows = [tried for row in rows for tried in tried_rows(row)]
    rows = select(rows, **asked.get("rows", {}))
    if not rows:
        raise ValueError(f"{path}: {files} has no row with {asked.get('rows')}")
    return rows


def table_of(path: Path, asked: Mapping[str, Any]) -> str:
    rows = rows_of(path, asked)
    if "lines" in asked:
        return pivot(path, rows, asked["lines"], asked["columns"])
    kind = asked.get("kind")
    tables = TABLES if kind in TABLES else TABLES | speed_tables()
    if kind not in tables:
        raise ValueError(f"{path}: kind={kind!r} is not one of {', '.join(tables)}; or give lines and columns")
    return tables[kind](rows)


def speed_tables() -> dict[str, Callable[[Sequence[dict]], str]]:
    """The tables of the benchmarks, whose modules take time to load."""
    from ..benchmark.gpu import gpu_table
    from ..benchmark.timing import length_table, markdown_table
    from ..benchmark.training import training_table

    return {"speed": markdown_table, "lengths": length_table, "speed_gpu": gpu_table, "speed_training": training_table}


def pivot(path: Path, rows: Sequence[dict], lines: Mapping[str, Any], columns: Mapping[str, dict]) -> str:
    """A table with a line for each label or value and a column for each title; a cell without a row is a dash.

    Raises:
        ValueError: a line has no rows, a column shows nothing, or a cell is of rows that are not seeds of one system.
    """
    for title, column in columns.items():
        if "show" not in column:
            raise ValueError(f"{path}: the column {title!r} must say what to show, such as show: sacrebleu")
    if "each" in lines:
        name = lines["each"]
        lines = {str(value): {name: value} for value in dict.fromkeys(row[name] for row in rows if name in row)}
    shown = []
    for label, conditions in lines.items():
        of = select(rows, **conditions)
        if not of:
            raise ValueError(f"{path}: there is no row for the line {label!r}, {conditions}")
        try:
            shown.append([label, *(column_cell(of, **column) for column in columns.values())])
        except ValueError as error:
            raise ValueError(f"{path}: the line {label!r} {error}") from None
    return markdown(["", *columns], shown)


def column_cell(
    rows: Sequence[dict], show: str | list[str], digits: int = 1, percent: bool = False, **conditions
) -> str:
    """The figure `show` of rows with these values; of a list, the first figure that exists; `a > b` is part b of a."""
    of = select(rows, **conditions)
    for name in [show] if isinstance(show, str) else show:
        shown = [(row, value) for row in of if (value := part_of(row, name.split(" > "))) is not None]
        values = [value for _, value in shown]
        apart = [key for key in KEYS if len({str(row.get(key)) for row, _ in shown}) > 1]
        same_seed = len(shown) > len({row.get("seed") for row, _ in shown})
        if same_seed or set(apart) - {"seed"} or (apart and isinstance(values[0], list)):
            raise ValueError(
                f"has {len(shown)} rows of {name}, which differ in {', '.join(apart) or 'other options'}: say in the "
                "line or the column which one"
            )
        if values and isinstance(values[0], list):  # an interval, the lowest and the highest round, or points of a log
            first, last = (value[1] if isinstance(value, list) else value for value in (values[0][0], values[0][-1]))
            return f"{first:.{digits}f} to {last:.{digits}f}"
        if values:
            return cell([100 * value for value in values] if percent else values, digits)
    return cell([])


def part_of(figure: Any, names: Sequence[str]) -> Any:
    for name in names:
        figure = figure.get(name) if isinstance(figure, dict) else None
    return figure


def write_picture(path: Path, asked: Mapping[str, Any]) -> None:
    rows, output, kind = rows_of(path, asked), path.parent / asked["file"], asked["kind"]
    if kind == "latency":
        plot_bleu_against_latency([row for row in rows if "," not in row["label"]], output)
    elif kind == "curves":
        lines = {label: curve(rows, **conditions) for label, conditions in asked["lines"].items()}
        plot_lines([Panel(STEPS, f"validation {BLEU}", drawn(lines))], output)
    elif kind == "lengths":
        runs = dict.fromkeys(row["run"] for row in rows)
        named = {run: [(f"k = {row['num_iterations']}", row) for row in select(rows, run=run)] for run in runs}
        plot_lines([length_panel(run, of) for run, of in named.items()], output)
    elif kind in PICTURES:
        plot_lines([panel for panel in PICTURES[kind](rows) if panel.lines], output)
    else:
        raise ValueError(f"{path}: kind={kind!r} must be one of latency, curves, lengths, {', '.join(PICTURES)}")
