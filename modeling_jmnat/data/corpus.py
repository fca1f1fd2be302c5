"""Parallel text from line-aligned files or from a data set of the Hugging Face Hub, with places named for messages.

A text is one line from the moment it is read: the commands hand text on in line-aligned files.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import datasets

from ..plain_text import clean_text
from ..tokenization_jmnat import one_line
from ..utils.text_files import read_parallel

SPLITS = ("train", "validation", "test")


@dataclass
class TextSplit:
    """The pairs of one split. `origins` says where side 0 and side 1 come from, for messages."""

    name: str
    sources: list[str]
    targets: list[str]
    origins: tuple[str, str]
    unit: str = "line"

    def __post_init__(self):
        self.sources = [clean_text(text) for text in self.sources]
        self.targets = [clean_text(text) for text in self.targets]

    def place(self, side: int, row: int) -> str:
        return f"{self.origins[side]}: {self.unit} {row + 1}"


def read_file_splits(files: dict[str, tuple[str | None, str | None]]) -> dict[str, TextSplit]:
    """Read a source and a target file for each split; train and validation are needed, test is optional."""
    splits = {}
    for name, (source, target) in files.items():
        if source and target:
            splits[name] = TextSplit(name, *read_parallel(source, target), origins=(source, target))
        elif source or target or name != "test":
            raise ValueError(f"{name}_source={source} and {name}_target={target}: both files are needed")
    return splits


def read_hub_splits(
    name: str, config: str | None, revision: str | None, split_names: dict[str, str], languages: tuple[str, str]
) -> dict[str, TextSplit]:
    """Read a data set whose rows hold `translation` dictionaries ({"de": ..., "en": ...}) or a column per language.

    Line breaks within a text become spaces.

    Args:
        name, config, revision: as for `datasets.load_dataset`; a local folder works, too.
        split_names: what the data set calls our three splits; the test split may be missing.
        languages: keys or columns of source and target.
    """
    try:
        data = datasets.load_dataset(name, config, revision=revision)
    except datasets.exceptions.DatasetsError as error:
        raise ValueError(f"dataset_name={name!r} cannot be read ({error})") from None
    splits = {}
    for split, wanted in split_names.items():
        if wanted not in data:
            if split == "test":
                continue
            raise ValueError(f"{split}_split={wanted!r} is not in {name}; it has {', '.join(data)}")
        if len(data[wanted]) == 0:
            raise ValueError(f"{name}: split {wanted} is empty, at least one row is needed")
        sources, targets = (_texts(data[wanted], language, name) for language in languages)
        source_origin, target_origin = (f"{name}, split {wanted}, {language}" for language in languages)
        splits[split] = TextSplit(split, sources, targets, (source_origin, target_origin), unit="row")
    return splits


def _texts(data: datasets.Dataset, language: str, name: str) -> list[str]:
    if language in data.column_names:
        return one_lines(data[language])
    first = data[0].get("translation")
    if not isinstance(first, dict) or language not in first:
        found = ", ".join(first if isinstance(first, dict) else data.column_names)
        raise ValueError(f"language {language!r} is not in {name}; it has {found}")
    return one_lines(pair[language] for pair in data["translation"])


def one_lines(texts: Iterable[str | None]) -> list[str]:
    """Each text of a data set as one line, an empty one for None."""
    return [one_line(text or "") for text in texts]
