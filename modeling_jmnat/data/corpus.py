"""Parallel text from line-aligned files or from a data set of the Hugging Face Hub, with its place for messages.

A text is a single line as soon as it is read, because the commands pass text on in line-aligned files.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from huggingface_hub.errors import HFValidationError

from ..spelling import clean_text
from ..tokenization_jmnat import one_line
from ..utils.text_files import iterate_parallel

SPLITS = ("train", "validation", "test")
SIDES = ("source", "target")
TEXT_TYPES = ("string", "large_string", "null")  # a column of nothing but nulls has the last
SCRIPTS_REFUSED = "Dataset scripts are no longer supported"  # the beginning of a message of `datasets`
CHUNK = 10_000  # pairs in memory at a time


@dataclass
class TextSplit:
    """The pairs of one split as they were read, stored on disk.

    Args:
        data: the pairs; None once they have been cleaned.
        sides: the column of each side, or its key in the column `translation`.
        clean: function applied to each text.
        origins: where each side comes from, for messages.
        unit: what a row is called in messages.
    """

    name: str
    data: datasets.Dataset | None
    sides: tuple[str, str]
    clean: Callable[[Any], str]
    origins: tuple[str, str]
    unit: str = "line"

    def place(self, side: int, row: int) -> str:
        return f"{self.origins[side]}: {self.unit} {row + 1}"


def read_file_splits(files: dict[str, tuple[str | None, str | None]], folder: Path) -> dict[str, TextSplit]:
    """Read a source and a target file for each split; train and validation are required, test is optional.

    Args:
        folder: where to store the pairs in Arrow files, which `datasets` maps into memory.

    Raises:
        ValueError: a file of a pair is missing, empty, damaged or of another length.
    """
    for name, (source, target) in files.items():
        if not (source and target) and (source or target or name != "test"):
            raise ValueError(f"{name}_source={source} and {name}_target={target}: both files are needed")
    splits = {}
    for name, (source, target) in files.items():
        if source and target:
            data = store_pairs(iterate_parallel(source, target), folder / f"{name}.read.arrow")
            splits[name] = TextSplit(name, data, SIDES, clean_text, origins=(source, target))
    return splits


def store_pairs(pairs: Iterator[tuple[str, str]], file: Path) -> datasets.Dataset:
    """Write pairs to an Arrow file, `CHUNK` at a time, and map it into memory."""
    schema = pa.schema([(side, pa.string()) for side in SIDES])
    with pa.OSFile(str(file), "wb") as opened, pa.ipc.new_stream(opened, schema) as writer:
        while chunk := list(itertools.islice(pairs, CHUNK)):
            columns = zip(*chunk, strict=True)
            writer.write_table(pa.table(dict(zip(SIDES, columns, strict=True)), schema=schema))
    return datasets.Dataset.from_file(str(file))


def read_hub_splits(
    name: str, config: str | None, revision: str | None, split_names: dict[str, str], languages: tuple[str, str]
) -> dict[str, TextSplit]:
    """Read a data set whose rows hold `translation` dictionaries ({"de": ..., "en": ...}) or a column per language.

    Line breaks within a text become spaces.

    Args:
        name, config, revision: as for `datasets.load_dataset`; `name` may also be a local folder.
        split_names: the data set's names for our three splits; its test split may be missing.
        languages: keys or columns of source and target.

    Raises:
        ValueError: the data set cannot be read, or lacks a split or a language.
    """
    try:
        data = datasets.load_dataset(name, config, revision=revision)
    except datasets.exceptions.DatasetsError as error:
        raise ValueError(f"dataset_name={name!r} cannot be read ({error.__cause__ or error})") from None
    except HFValidationError:  # a path
        raise ValueError(f"dataset_name={name!r} is neither a folder nor a possible name on the Hub") from None
    except RuntimeError as error:
        if not str(error).startswith(SCRIPTS_REFUSED):
            raise
        raise ValueError(
            f"dataset_name={name!r} is defined by a script, which is not run: try "
            "--dataset_revision refs/convert/parquet, or download it and give the folder of its data files"
        ) from None
    splits = {}
    for split, wanted in split_names.items():
        if wanted not in data:
            if split == "test":
                continue
            raise ValueError(f"{split}_split={wanted!r} is not in {name}; it has {', '.join(data)}")
        if len(data[wanted]) == 0:
            raise ValueError(f"{name}: split {wanted} is empty: at least one row is needed")
        for language in languages:
            _check_language(data[wanted], language, name)
        source_origin, target_origin = (f"{name}, split {wanted}, {language}" for language in languages)
        splits[split] = TextSplit(
            split, data[wanted], languages, _clean_row, (source_origin, target_origin), unit="row"
        )
    return splits


def _check_language(data: datasets.Dataset, language: str, name: str) -> None:
    """ValueError unless each row has a text in a language, or none (null)."""
    pairs = data.features.get("translation")
    if isinstance(pairs, datasets.Translation):
        pairs = dict.fromkeys(pairs.languages, datasets.Value("string"))
    columns = {**(pairs if isinstance(pairs, dict) else {}), **data.features}
    if language not in columns:
        found = ", ".join(pairs if isinstance(pairs, dict) else columns)
        raise ValueError(f"language {language!r} is not in {name}; it has {found}")
    kind = getattr(columns[language], "dtype", type(columns[language]).__name__)
    if kind not in TEXT_TYPES:
        raise ValueError(f"{name}: {language!r} has the type {kind} but must hold text: convert it to strings")


def texts_of(rows: dict[str, list], side: str) -> Iterable[str | None]:
    """The texts of one side in a batch of rows, given as columns."""
    return rows[side] if side in rows else ((pair or {}).get(side) for pair in rows["translation"])


def _clean_row(text: str | None) -> str:
    return clean_text(row_text(text))


def row_text(text: str | None) -> str:
    """A text of a data set as a single line; "" for None."""
    return one_line(text or "")
