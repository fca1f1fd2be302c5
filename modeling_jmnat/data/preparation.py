"""From line-aligned text to what training reads: cleaned pairs, one tokenizer and the ids, written to one folder.

DIR/dataset            Arrow `DatasetDict`; columns id, source, target, input_ids, labels
DIR/tokenizer          the tokenizer
DIR/preparation.json   counts of what was kept and dropped, and the tokenizer's fingerprint; written last
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from ..plain_text import protect_pair
from ..segmenters import moses_tool
from ..tokenization_jmnat import JMNatTokenizer, train_joint_tokenizer
from ..utils.atomic_files import UNFINISHED, replace_files, write_json
from ..utils.fingerprints import (
    TOKENIZER_FILES,
    check_tokenizer_files,
    ids_digest,
    legacy_folder_digest,
    same_fingerprint,
    tokenizer_fingerprint,
)
from ..utils.hub_folders import fetch_folder
from ..utils.json_files import read_json
from ..utils.locks import folder_lock
from .corpus import SPLITS, TextSplit, one_lines, read_file_splits, read_hub_splits
from .options import PreparationArguments

COLUMNS = {"id": "int64", "source": "string", "target": "string", "input_ids": "int32", "labels": "int32"}
PREPARE_AGAIN = "prepare the data again"
RESULT = "preparation.json"  # while it is missing, the rest is not complete
OF_MARIAN = "source.spm"
CHUNK = 10_000  # pairs tokenised at a time


def prepare(arguments: PreparationArguments) -> dict:
    """Read, clean, tokenise and write. Returns what `preparation.json` holds.

    Raises:
        ValueError: input that cannot be used; the message names file and line where there is one. A folder that holds
            a preparation already, or that another process prepares data in.
        OSError: a file that cannot be read or written.
    """
    output_dir = Path(arguments.output_dir)
    _check_writable(output_dir)
    with folder_lock(output_dir, "output_dir"):
        _check_free(output_dir, arguments.overwrite)
        return _prepare(arguments, output_dir)


def _prepare(arguments: PreparationArguments, output_dir: Path) -> dict:
    splits = read_splits(arguments)
    if arguments.append_train_of is not None:
        appended = load_prepared(arguments.append_train_of)[0]["train"]
        splits["train"].sources += one_lines(appended["source"])
        splits["train"].targets += one_lines(appended["target"])
    counts = {"train": clean_train_text(splits["train"], arguments)}
    for name in splits.keys() - {"train"}:
        _refuse_empty_lines(splits[name])
    tokenizer = _tokenizer_for(splits["train"], arguments)
    tables, lengths = {}, {}
    for name, split in splits.items():
        table = encode_split(split, tokenizer)
        if name == "train":
            table = clean_train_tokens(table, arguments, counts["train"])
        else:
            _refuse_long_lines(table, split, arguments.max_model_tokens)
            counts[name] = {"read": len(table), "kept": len(table)}
        tables[name], lengths[name] = table, _mean_lengths(table)
    data = datasets.DatasetDict({name: _as_dataset(table) for name, table in tables.items()})
    with replace_files(output_dir, stale=("dataset/**/*", "tokenizer/*"), last=(RESULT,)) as folder:
        tokenizer.save_pretrained(folder / "tokenizer")
        data.save_to_disk(folder / "dataset")
        result = {
            "pairs": counts,
            "mean_tokens": lengths,
            "vocab_size": len(tokenizer),
            "source_lang": arguments.source_lang,
            "target_lang": arguments.target_lang,
            "lowercase": tokenizer.lowercase,
            "moses_source_lang": tokenizer.moses_source_lang,
            "moses_target_lang": tokenizer.moses_target_lang,
            "tokenizer_sha256": tokenizer_fingerprint(folder / "tokenizer"),
        }
        write_json(folder / RESULT, result)
    return result


def load_prepared(directory: str | Path) -> tuple[datasets.DatasetDict, JMNatTokenizer]:
    """The data set and the tokenizer that `prepare` wrote to `directory`.

    Raises:
        ValueError: no complete preparation there, or its tokenizer is not the one that made the ids.
    """
    directory = Path(directory)
    try:
        written = dict(json.loads((directory / RESULT).read_text()))
    except FileNotFoundError:
        raise ValueError(
            f"{directory} holds no finished preparation (preparation.json is missing); make one with prepare_data.py"
        ) from None
    except (ValueError, TypeError):
        raise ValueError(f"{directory / RESULT} is damaged: prepare the data again") from None
    folder = directory / "tokenizer"
    now = tokenizer_fingerprint(folder)
    if not same_fingerprint(written.get("tokenizer_sha256"), now, lambda: legacy_folder_digest(folder)):
        raise ValueError(
            f"{folder} is not the tokenizer that made the ids in {directory / 'dataset'} "
            "(tokenizer.json has another hash); prepare the data again"
        )
    return _load_dataset(directory / "dataset"), JMNatTokenizer.from_pretrained(folder)


def prepared_text(directory: str | Path, split: str) -> tuple[list[str], list[str]]:
    """Sources and targets of a split of prepared data.

    Raises:
        ValueError: as `load_prepared`, or there is no such split.
    """
    dataset, _ = load_prepared(directory)
    if split not in dataset:
        raise ValueError(f"{directory} has no {split} split: prepare_data.py takes --{split}_source and _target")
    return list(dataset[split]["source"]), list(dataset[split]["target"])


def prepared_language(directory: str | Path) -> str | None:
    """The target language of prepared data, where it was given."""
    return read_json(Path(directory) / RESULT, ("target_lang",), PREPARE_AGAIN)["target_lang"]


def _load_dataset(folder: Path) -> datasets.DatasetDict:
    """What `save_to_disk` wrote; ValueError naming a file that is damaged."""
    for split in read_json(folder / "dataset_dict.json", ("splits",), PREPARE_AGAIN)["splits"]:
        for name, keys in (("state.json", ("_data_files",)), ("dataset_info.json", ("features",))):
            read_json(folder / split / name, keys, PREPARE_AGAIN)
    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        for path in sorted(folder.glob("*/*.arrow")):
            try:
                datasets.Dataset.from_file(str(path))
            except (OSError, ValueError):
                raise ValueError(f"{path} is damaged or cut short: {PREPARE_AGAIN}") from None
        raise ValueError(f"{folder} is not complete ({error}): {PREPARE_AGAIN}") from None


def read_splits(arguments: PreparationArguments) -> dict[str, TextSplit]:
    """The splits that the arguments name: train and validation always, test where there is one."""
    files = {name: (getattr(arguments, f"{name}_source"), getattr(arguments, f"{name}_target")) for name in SPLITS}
    if arguments.dataset_name is None:
        return read_file_splits(files)
    named = [path for pair in files.values() for path in pair if path]
    if named:
        raise ValueError(f"dataset_name={arguments.dataset_name!r} and text files ({named[0]}): give one of them")
    hub_names = {name: getattr(arguments, f"{name}_split") for name in SPLITS}
    place = (arguments.dataset_name, arguments.dataset_config, arguments.dataset_revision)
    return read_hub_splits(*place, hub_names, arguments.languages())


def clean_train_text(split: TextSplit, arguments: PreparationArguments) -> dict[str, int]:
    """Drop pairs by their text, in place; returns how many were read and dropped for each reason."""
    counts = {"read": len(split.sources), "empty_side": 0, "copy": 0, "duplicate": 0}
    kept, seen = [], set()
    for pair in zip(split.sources, split.targets, strict=True):
        if not all(pair):
            counts["empty_side"] += 1
        elif arguments.drop_copies and pair[0] == pair[1]:
            counts["copy"] += 1
        elif arguments.drop_duplicates and pair in seen:
            counts["duplicate"] += 1
        else:
            kept.append(pair)
            if arguments.drop_duplicates:
                seen.add(pair)
    if not kept:
        raise ValueError(
            f"{split.origins[0]} and {split.origins[1]}: no training pair is left after cleaning ({counts})"
        )
    split.sources, split.targets = (list(side) for side in zip(*kept, strict=True))
    return counts


def clean_train_tokens(table: pa.Table, arguments: PreparationArguments, counts: dict[str, int]) -> pa.Table:
    """Drop pairs by their token counts and add the reasons to `counts`; ids are given anew, 0 to N-1."""
    sources, targets = _token_counts(table)
    counts.update(too_long=0, length_ratio=0)
    keep = []
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        longer, shorter = max(source, target), min(source, target)
        if longer > arguments.max_tokens_per_sentence:
            counts["too_long"] += 1
        elif arguments.max_length_ratio and longer > arguments.max_length_ratio * shorter:
            counts["length_ratio"] += 1
        else:
            keep.append(row)
    counts["kept"] = len(keep)
    if not keep:
        raise ValueError(f"no training pair is left after cleaning ({counts})")
    table = table.take(keep)
    return table.set_column(0, "id", pa.array(range(len(keep)), pa.int64()))


def encode_split(split: TextSplit, tokenizer: JMNatTokenizer) -> pa.Table:
    """Columns id, source, target, and input_ids and labels, which end in `</s>` and hold marks for what is copied."""
    schema = _features().arrow_schema
    starts = range(0, len(split.sources), CHUNK)
    tables = []
    for start in tqdm(starts, desc=f"tokenising {split.name}", disable=not sys.stderr.isatty()):
        sources, targets = (side[start : start + CHUNK] for side in (split.sources, split.targets))
        marked = [protect_pair(tokenizer, *pair) for pair in zip(sources, targets, strict=True)]
        marked_sources, marked_targets = (list(side) for side in zip(*marked, strict=True))
        encoded = tokenizer(marked_sources, text_target=marked_targets, verbose=False)
        columns = {
            "id": range(start, start + len(sources)),
            "source": [tokenizer.normalize_text(text) for text in sources],
            "target": [tokenizer.normalize_text(text) for text in targets],
            "input_ids": encoded["input_ids"],
            "labels": encoded["labels"],
        }
        tables.append(pa.table(columns, schema=schema))
    return pa.concat_tables(tables)


def _features() -> datasets.Features:
    lists = ("input_ids", "labels")
    values = {name: datasets.Value(kind) for name, kind in COLUMNS.items()}
    return datasets.Features(
        {name: datasets.List(value) if name in lists else value for name, value in values.items()}
    )


def _as_dataset(table: pa.Table) -> datasets.Dataset:
    """A data set of the table. Its fingerprint is that of the ids: left out, the library would pickle everything."""
    return datasets.Dataset(
        datasets.table.InMemoryTable(table),
        info=datasets.DatasetInfo(features=_features()),
        fingerprint=ids_digest(table.column(name) for name in ("input_ids", "labels"))[:16],
    )


def _tokenizer_for(train: TextSplit, arguments: PreparationArguments) -> JMNatTokenizer:
    """The tokenizer of `arguments.tokenizer`, or one trained on the cleaned training text."""
    languages = arguments.languages() if arguments.moses else (None, None)
    if arguments.tokenizer is not None:
        folder = fetch_folder(arguments.tokenizer, (*TOKENIZER_FILES, OF_MARIAN))
        if (folder / OF_MARIAN).is_file():
            raise ValueError(
                f"{arguments.tokenizer} has a Marian tokenizer: make a start with `jmnat init --from "
                f"{arguments.tokenizer} --output DIR` and prepare the data with --tokenizer DIR"
            )
        check_tokenizer_files(folder)
        tokenizer = JMNatTokenizer.from_pretrained(folder)
        if tokenizer.eos_token_id is None or tokenizer("")["input_ids"][-1:] != [tokenizer.eos_token_id]:
            raise ValueError(f"the tokenizer of {arguments.tokenizer} does not end a text in its end token")
        if arguments.lowercase and not tokenizer.lowercase:
            raise ValueError(f"lowercase=True, but the tokenizer of {arguments.tokenizer} keeps case")
        if arguments.moses and (tokenizer.moses_source_lang, tokenizer.moses_target_lang) != languages:
            raise ValueError(
                f"moses=True with {languages[0]} and {languages[1]}, but the tokenizer of {arguments.tokenizer} has "
                f"{tokenizer.moses_source_lang} and {tokenizer.moses_target_lang}"
            )
        return tokenizer
    texts = [train.sources, train.targets]
    if arguments.moses:
        texts = [_moses_lines(side, language) for side, language in zip(texts, arguments.languages(), strict=True)]
    return train_joint_tokenizer(
        [*texts[0], *texts[1]],
        vocab_size=arguments.vocab_size,
        lowercase=arguments.lowercase,
        moses_source_lang=languages[0],
        moses_target_lang=languages[1],
        model_max_length=arguments.max_model_tokens,
        unicode_form=arguments.unicode_form,
        marks=arguments.mark_copied,
    )


def _moses_lines(texts: list[str], language: str) -> list[str]:
    split = moses_tool("tokenizer", language)
    return [split(text) for text in tqdm(texts, desc=f"Moses {language}", disable=not sys.stderr.isatty())]


def _refuse_empty_lines(split: TextSplit):
    for row, pair in enumerate(zip(split.sources, split.targets, strict=True)):
        if not all(pair):
            place = split.place(0 if not pair[0] else 1, row)
            raise ValueError(f"{place} is empty: every {split.name} sentence needs text on both sides")


def _refuse_long_lines(table: pa.Table, split: TextSplit, allowed: int):
    for row, counts in enumerate(zip(*_token_counts(table), strict=True)):
        if max(counts) > allowed:
            side = int(counts[1] > allowed)
            raise ValueError(
                f"{split.place(side, row)} has {counts[side]} tokens: the longest {split.name} sentence allowed is "
                f"{allowed} (max_model_tokens)"
            )


def _token_counts(table: pa.Table) -> tuple[list[int], list[int]]:
    return tuple(pc.list_value_length(table.column(name)).to_pylist() for name in ("input_ids", "labels"))


def _mean_lengths(table: pa.Table) -> dict[str, float]:
    sources, targets = _token_counts(table)
    return {"source": round(sum(sources) / len(sources), 2), "target": round(sum(targets) / len(targets), 2)}


def _check_writable(directory: Path) -> None:
    """Make the folder and try it before the long work."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ValueError(f"output_dir={directory} cannot be written ({error.strerror})") from None


def _check_free(directory: Path, overwrite: bool) -> None:
    """Refuse an earlier preparation without `overwrite`; what a killed process left is no such thing."""
    names = (RESULT, "dataset", "tokenizer")
    existing = [name for name in names if (directory / name).exists()]
    interrupted = RESULT not in existing and (directory / UNFINISHED).exists()
    if existing and not overwrite and not interrupted:
        raise ValueError(f"output_dir={directory} already holds {existing[0]}; pass --overwrite to replace it")
    if (directory / UNFINISHED).is_file():  # a mark of earlier versions, which wrote the others in their places
        for name in names[1:] if interrupted else ():
            shutil.rmtree(directory / name, ignore_errors=True)
        (directory / UNFINISHED).unlink()
