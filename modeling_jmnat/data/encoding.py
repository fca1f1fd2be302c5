"""Pairs of text to pairs of ids, in batches; all columns are in Arrow files that are mapped into memory.

Only a few numbers per pair are held in memory for the whole corpus: an 8-byte digest for finding duplicates, its index
among the pairs kept, and its two lengths.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from ..plain_text import protect_pair
from ..segmenters import moses_tool
from ..tokenization_jmnat import JMNatTokenizer
from ..utils.fingerprints import ids_digest, number_of_text
from ..utils.workers import ending_together
from .corpus import CHUNK, SIDES, TextSplit, texts_of
from .dataset_columns import column_lengths
from .options import PreparationArguments

COLUMNS = {"id": "int64", "source": "string", "target": "string", "input_ids": "int32", "labels": "int32"}
IDS = ("input_ids", "labels")


class Workshop:
    """Processes data sets in batches with several processes, and stores the results in a folder.

    Args:
        folder: where each step writes its file, or a file per process.
        num_proc: most processes to use. With 1, the tokenizer may still use several threads.
    """

    def __init__(self, folder: Path, num_proc: int = 1):
        self.folder, self.num_proc = folder, num_proc

    def map(
        self, data: datasets.Dataset, function: Callable, name: str, features: datasets.Features, **arguments
    ) -> datasets.Dataset:
        """Apply `function` to each batch of `data`; the result and its order do not depend on `num_proc`."""
        processes = min(self.num_proc, -(-len(data) // CHUNK))
        with ending_together():
            return data.map(
                _as_table,
                batched=True,
                batch_size=CHUNK,
                writer_batch_size=CHUNK,
                num_proc=processes if processes > 1 else None,
                features=features,
                remove_columns=data.column_names,
                cache_file_name=str(self.folder / f"{name}.arrow"),
                load_from_cache_file=False,
                new_fingerprint=name,
                desc=name,
                fn_kwargs={"function": function, "arguments": arguments, "features": features},
            )

    def remove(self, data: datasets.Dataset) -> None:
        """Delete the files of a step that is no longer needed."""
        for file in data.cache_files:
            if self.folder in Path(file["filename"]).parents:
                Path(file["filename"]).unlink(missing_ok=True)


def _as_table(batch, function: Callable, arguments: dict, features: datasets.Features) -> pa.Table:
    return pa.table(function(batch, **arguments), schema=features.arrow_schema)


# Text ----------------------------------------------------------------------------------------------------------------

TEXT = {side: datasets.Value("string") for side in SIDES}
CHECKED = datasets.Features(
    TEXT | {"empty": datasets.Value("bool"), "copy": datasets.Value("bool"), "digest": datasets.Value("uint64")}
)


def clean_split(split: TextSplit, workshop: Workshop) -> datasets.Dataset:
    """The cleaned pairs, and for each one whether a side is empty, whether it is a copy, and a digest."""
    return workshop.map(split.data, _clean, f"cleaning-{split.name}", CHECKED, sides=split.sides, clean=split.clean)


def _clean(batch, sides: tuple[str, str], clean: Callable[[str | None], str]) -> dict[str, list]:
    sources, targets = ([clean(text) for text in texts_of(batch, side)] for side in sides)
    pairs = list(zip(sources, targets, strict=True))
    return {
        "source": sources,
        "target": targets,
        "empty": [not all(pair) for pair in pairs],
        "copy": [source == target for source, target in pairs],
        "digest": [number_of_text("\n".join(pair)) for pair in pairs],
    }


def drop_text(pairs: datasets.Dataset, arguments: PreparationArguments) -> tuple[datasets.Dataset, dict[str, int]]:
    """The pairs of `clean_split` to keep, and how many were read and how many dropped for each reason."""
    empty = numbers(pairs, "empty")
    copy = numbers(pairs, "copy") & ~empty & arguments.drop_copies
    kept = np.flatnonzero(~empty & ~copy)
    num_candidates = len(kept)
    if arguments.drop_duplicates:
        kept = kept[np.sort(np.unique(numbers(pairs, "digest")[kept], return_index=True)[1])]
    counts = {
        "read": len(pairs),
        "empty_side": int(empty.sum()),
        "copy": int(copy.sum()),
        "duplicate": num_candidates - len(kept),
    }
    return selected(pairs, kept).select_columns([*SIDES]), counts


def numbers(data: datasets.Dataset, name: str) -> np.ndarray:
    """A column of numbers."""
    return data.with_format("arrow")[name][:].to_numpy()


def selected(data: datasets.Dataset, rows: np.ndarray) -> datasets.Dataset:
    return data if len(rows) == len(data) else data.select(rows)


class Texts:
    """All sources, then all targets of a data set; it can be iterated repeatedly."""

    def __init__(self, data: datasets.Dataset):
        self.data = data

    def __iter__(self) -> Iterator[str]:
        for side in SIDES:
            for batch in self.data.select_columns([side]).with_format("arrow").iter(CHUNK):
                yield from batch[side].to_pylist()


def moses_split(pairs: datasets.Dataset, languages: tuple[str, str], workshop: Workshop) -> datasets.Dataset:
    """The pairs after Moses tokenisation."""
    return workshop.map(pairs, _moses, "moses", datasets.Features(TEXT), languages=languages)


def _moses(batch, languages: tuple[str, str]) -> dict[str, list[str]]:
    tools = [moses_tool("tokenizer", language) for language in languages]
    return {side: [split(text) for text in batch[side]] for side, split in zip(SIDES, tools, strict=True)}


# Ids -----------------------------------------------------------------------------------------------------------------


def features() -> datasets.Features:
    """The types of the columns that training reads."""
    values = {name: datasets.Value(kind) for name, kind in COLUMNS.items()}
    return datasets.Features({name: datasets.List(value) if name in IDS else value for name, value in values.items()})


def encode_split(
    pairs: datasets.Dataset, name: str, tokenizer: JMNatTokenizer, workshop: Workshop
) -> datasets.Dataset:
    """Columns source, target, input_ids and labels; the ids end in `</s>` and have marks for text to be copied."""
    columns = datasets.Features({column: value for column, value in features().items() if column != "id"})
    return workshop.map(pairs, _encode, f"tokenising-{name}", columns, tokenizer=tokenizer)


def _encode(batch, tokenizer: JMNatTokenizer) -> dict[str, list]:
    sources, targets = (batch[side] for side in SIDES)
    marked = [protect_pair(tokenizer, *pair) for pair in zip(sources, targets, strict=True)]
    marked_sources, marked_targets = (list(side) for side in zip(*marked, strict=True))
    encoded = tokenizer(marked_sources, text_target=marked_targets, verbose=False)
    return {
        "source": [tokenizer.normalize_text(text) for text in sources],
        "target": [tokenizer.normalize_text(text) for text in targets],
        "input_ids": encoded["input_ids"],
        "labels": encoded["labels"],
    }


def token_counts(data: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each source and of each target."""
    return column_lengths(data, "input_ids"), column_lengths(data, "labels")


def kept_by_length(data: datasets.Dataset, arguments: PreparationArguments, counts: dict[str, int]) -> np.ndarray:
    """The indices of pairs whose token counts are within the limits; adds the numbers dropped to `counts`."""
    sources, targets = token_counts(data)
    longer, shorter = np.maximum(sources, targets), np.minimum(sources, targets)
    too_long = longer > arguments.max_tokens_per_sentence
    uneven = ~too_long & (longer > arguments.max_length_ratio * shorter) & (arguments.max_length_ratio != 0)
    kept = np.flatnonzero(~too_long & ~uneven)
    counts.update(too_long=int(too_long.sum()), length_ratio=int(uneven.sum()), kept=len(kept))
    return kept


def copied(data: datasets.Dataset, rows: np.ndarray, workshop: Workshop, name: str) -> datasets.Dataset:
    """These rows of the result of `encode_split`, in a new file unless they are all of them."""
    if len(rows) == len(data):
        return data
    file = str(workshop.folder / f"selecting-{name}.arrow")
    kept = data.select(rows).with_format("arrow").flatten_indices(cache_file_name=file, new_fingerprint=name)
    workshop.remove(data)
    return kept


def numbered(data: datasets.Dataset, name: str) -> datasets.Dataset:
    """The rows with the ids 0 to N - 1.

    The fingerprint is a digest of the ids; to compute its own, the library would pickle everything.
    """
    table = data.add_column("id", np.arange(len(data)), new_fingerprint=name).select_columns([*COLUMNS]).data
    return datasets.Dataset(
        table,
        info=datasets.DatasetInfo(features=features()),
        fingerprint=ids_digest(table.column(name) for name in IDS)[:16],
    )


def mean_lengths(data: datasets.Dataset) -> dict[str, float]:
    """Mean number of tokens of sources and of targets."""
    return {
        side: round(int(counts.sum()) / len(data), 2) for side, counts in zip(SIDES, token_counts(data), strict=True)
    }
