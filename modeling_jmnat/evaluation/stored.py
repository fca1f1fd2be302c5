"""Stored translations: those beside the JSON file of an evaluation, and those of baselines.

Scores can be recomputed from these files with the command `sacrebleu`.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ..utils.text_files import read_lines, write_lines

REFERENCE = "reference"  # the name of the stored references
SETTINGS = ("noise_level", "num_iterations", "num_beams")  # these distinguish the rows of an evaluation


def stored_folder(output: str | Path | None) -> Path | None:
    """The folder of an evaluation's translations: `results/a.translations` beside `results/a.json`.

    None if no file is written, or if it is a device or a pipe.
    """
    if output is None or (Path(output).exists() and not Path(output).is_file()):
        return None
    return Path(str(output).removesuffix(".json") + ".translations")


def row_name(row: dict, equals: str = "-", between: str = "-") -> str:
    """`num_iterations-4`, preceded by the noise level if there is one."""
    return between.join(f"{name}{equals}{row[name]}" for name in SETTINGS if name in row)


def store_texts(folder: Path, name: str, texts: Sequence[str], words: Callable[[str], str] | None = None) -> str:
    """Write NAME.txt.gz, and NAME.tok.txt.gz with the `words` of each text, from which tokenised BLEU is computed.

    Returns:
        The path of the first file, relative to the folder of the JSON file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / f"{name}.txt.gz", texts)
    if words is not None:
        write_lines(folder / f"{name}.tok.txt.gz", map(words, texts))
    return f"{folder.name}/{name}.txt.gz"


def read_baselines(paths: Sequence[str], references: Sequence[str]) -> dict[str, list[str]]:
    """Translations of other systems by name, from text files and from all rows of JSON files of evaluate.py.

    Raises:
        ValueError: a JSON file names no translations, or translations of another text; the number of lines differs
            from that of the references; or two baselines have the same name.
    """
    found: dict[str, list[str]] = {}
    for path in map(Path, paths):
        files = _files_of(path)
        for name, file in files.items():
            lines = read_lines(file)
            if len(lines) != len(references):
                raise ValueError(
                    f"baseline={file} has {len(lines)} lines, but there are {len(references)} references: give "
                    "translations of the same text"
                )
            if name in found:
                raise ValueError(f"baseline={path}: two baselines are called {name!r}, rename one of the files")
            found[name] = lines
        for stored in {file.with_name(f"{REFERENCE}.txt.gz") for file in files.values()}:
            if path.suffix == ".json" and stored.is_file() and read_lines(stored) != references:
                raise ValueError(
                    f"baseline={path} was evaluated with other references ({stored}): evaluate it on the same text"
                )
    return found


def _files_of(path: Path) -> dict[str, Path]:
    if path.suffix != ".json":
        return {path.name: path}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["results"]
        return {f"{path.name} {row_name(row, ' ', ', ')}": path.parent / row["translations"] for row in rows}
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"baseline={path} has no translations: give a file of translations, or the JSON file of an evaluation "
            "that stored them beside it (`jmnat evaluate --output`)"
        ) from None
