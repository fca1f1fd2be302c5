"""A folder of results: `results.jsonl` and the translations that its scores are computed from.

The translations of one run and split are one file, `translations/RUN-SPLIT.tsv.gz`: a line for each sentence, a column
for each row of results that names it. `zcat FILE | cut -f COLUMN | sacrebleu REFERENCE` recomputes a score.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..utils.atomic_files import atomic_text_file
from ..utils.json_files import read_json_lines
from ..utils.text_files import read_lines, write_lines
from .rows import collect, key_of

RESULTS = "results.jsonl"


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    with atomic_text_file(path) as file:
        file.writelines(f"{json.dumps(row, ensure_ascii=False, allow_nan=False)}\n" for row in rows)


def add_results(
    folder: Path, sources: Sequence[Path], run: str, only: str = "", with_translations: bool = True
) -> tuple[int, int]:
    """Put results that other commands wrote into `folder`, in place of rows with the same keys.

    Args:
        sources: see `rows.collect`.
        run: name of the run, such as "multi30k_tiny/teacher_3600/updates_9600".
        only: regular expression; takes the systems, such as "jm-1.independent", in whose names it is found.
        with_translations: copy the translations, too; False for text whose licence forbids it.

    Returns:
        The numbers of new rows and of replaced rows.
    """
    found = [row for source in sources for row in collect(source, run)]
    new = {key_of(row): row for row in found if re.search(only, name_of(row))}
    if not new:
        raise ValueError(f"only={only!r} matches none of {', '.join(sorted({name_of(row) for row in found}))}")
    path = folder / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    old = {key_of(row): row for row in read_json_lines(path)} if path.is_file() else {}
    rows = old | new
    texts = {key: Path(row["translations"]) for key, row in new.items() if row.get("translations")}
    for key in texts:
        rows[key] = rows[key] | {"translations": None}
    if with_translations and texts:
        store_translations(folder, rows, texts, old)
    write_rows(path, rows.values())
    return len(new.keys() - old.keys()), len(new.keys() & old.keys())


def name_of(row: dict) -> str:
    """The name of the file a row comes from (`jm-1.independent`), `jm against cm`, or the title of a benchmark."""
    against = f" against {row['baseline_system']}" if row.get("baseline_system") else ""
    seed = "" if row.get("seed") is None else f"-{row['seed']}"
    variant = f".{row['variant']}" if row.get("variant") else ""
    return row.get("title") or f"{row.get('system') or row.get('size')}{seed}{variant}{against}"


def store_translations(
    folder: Path, rows: dict[tuple, dict], texts: dict[tuple, Path], old: dict[tuple, dict]
) -> None:
    """Copy the files `texts` into columns, and note the column in their rows; `rows` are all of the folder, by key.

    The columns of `old`, the rows up to now, keep their places, so that they are right if the rows cannot be written.
    """
    by_file: dict[str, dict[tuple, list[str]]] = {}
    for key, source in texts.items():
        row = rows[key]
        parts = [*row["run"].split("/"), *([row["split"]] if "split" in row else [])]
        name = f"translations/{'-'.join(parts)}.tsv.gz"
        by_file.setdefault(name, {})[key] = read_lines(source)
    for name, columns in by_file.items():
        before = [key for key, row in old.items() if row.get("translations") == name]
        before.sort(key=lambda key: old[key]["column"])
        kept = {key: columns.get(key) or translations_of(folder, old[key]) for key in before}
        columns = kept | columns
        counts = {len(texts): key for key, texts in columns.items()}
        if len(counts) > 1:
            (few, one), (many, other) = sorted(counts.items(), key=lambda count: count[0])[:2]
            raise ValueError(
                f"{name_of(rows[one])} has {few} translations and {name_of(rows[other])} has {many}, but those of one "
                "run are of the same text: give another --run, or --with_translations False"
            )
        if any("\t" in text for texts in columns.values() for text in texts):
            raise ValueError(f"{name} cannot hold translations with tabs: give --with_translations False")
        (folder / name).parent.mkdir(exist_ok=True)
        write_lines(folder / name, map("\t".join, zip(*columns.values(), strict=True)))
        for number, key in enumerate(columns, 1):
            rows[key] = rows[key] | {"translations": name, "column": number}


def translations_of(folder: Path, row: dict) -> list[str]:
    """The translations that a row's scores are computed from.

    Raises:
        ValueError: none are stored.
    """
    if row.get("translations") is None:
        raise ValueError(f"there are no stored translations of {name_of(row)} in {row.get('run')}")
    return [line.split("\t")[row["column"] - 1] for line in read_lines(folder / row["translations"])]
