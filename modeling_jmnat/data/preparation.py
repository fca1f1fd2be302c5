"""From parallel text to training data: cleaned pairs, a tokenizer and the ids, written to one folder.

The text may be larger than memory: each step reads a data set of `datasets` in batches and writes the next one.

DIR/dataset            Arrow `DatasetDict`; columns id, source, target, input_ids, labels
DIR/tokenizer          the tokenizer
DIR/preparation.json   counts of what was kept and dropped, and the tokenizer's fingerprint; written last
"""

import json
import shutil
import tempfile
from collections.abc import Sized
from pathlib import Path

import datasets
import numpy as np

from ..tokenization_jmnat import JMNatTokenizer, train_joint_tokenizer
from ..utils.atomic_files import UNFINISHED, replace_files, scratch_folder, write_json
from ..utils.fingerprints import (
    TOKENIZER_FILES,
    check_tokenizer_files,
    legacy_folder_digest,
    same_fingerprint,
    tokenizer_fingerprint,
)
from ..utils.hub_folders import fetch_folder
from ..utils.json_files import read_json
from ..utils.locks import folder_lock
from .corpus import SIDES, SPLITS, TextSplit, read_file_splits, read_hub_splits, row_text
from .encoding import (
    Texts,
    Workshop,
    clean_split,
    copied,
    drop_text,
    encode_split,
    kept_by_length,
    mean_lengths,
    moses_split,
    numbered,
    numbers,
    token_counts,
)
from .options import PreparationArguments

PREPARE_AGAIN = "prepare the data again"
RESULT = "preparation.json"  # written last: without it, the folder is not complete
OF_MARIAN = "source.spm"


def prepare(arguments: PreparationArguments) -> dict:
    """Read, clean, tokenise and write. Returns the content of `preparation.json`.

    Raises:
        ValueError: the input cannot be used (the message names file and line, if there is one), or the folder holds a
            preparation already or is in use by another process.
        OSError: a file cannot be read or written.
    """
    output_dir = Path(arguments.output_dir)
    _check_writable(output_dir)
    with folder_lock(output_dir, "output_dir"):
        _check_free(output_dir, arguments.overwrite)
        return _prepare(arguments, output_dir)


def _prepare(arguments: PreparationArguments, output_dir: Path) -> dict:
    with scratch_folder(output_dir) as folder:
        workshop = Workshop(folder, arguments.num_proc)
        splits = read_splits(arguments, folder)
        texts, counts, data = {}, {}, {}
        for name, split in splits.items():
            texts[name], counts[name] = _cleaned(split, arguments, workshop)
        tokenizer = _tokenizer_for(texts["train"], arguments, workshop)
        for name, split in splits.items():
            encoded = encode_split(texts[name], name, tokenizer, workshop)
            workshop.remove(texts.pop(name))
            if name == "train":
                rows = kept_by_length(encoded, arguments, counts[name])
                _refuse_nothing(rows, counts[name])
            else:
                rows = np.arange(len(encoded))
                _refuse_long_lines(encoded, split, arguments.max_model_tokens)
            encoded = copied(encoded, rows, workshop, name)  # the other rows are deleted
            data[name] = numbered(encoded, name)
        return _write(output_dir, data, tokenizer, counts, arguments)


def _cleaned(
    split: TextSplit, arguments: PreparationArguments, workshop: Workshop
) -> tuple[datasets.Dataset, dict[str, int]]:
    """The pairs of a split to keep, and the counts; deletes the files of the uncleaned pairs."""
    pairs = clean_split(split, workshop)
    workshop.remove(split.data)
    split.data = None
    if split.name != "train":
        _refuse_empty_lines(pairs, split)
        return pairs, {"read": len(pairs), "kept": len(pairs)}
    kept, counts = drop_text(_with_appended(pairs, arguments, workshop), arguments)
    _refuse_nothing(kept, counts, f"{split.origins[0]} and {split.origins[1]}: ")
    return kept, counts


def _with_appended(pairs: datasets.Dataset, arguments: PreparationArguments, workshop: Workshop) -> datasets.Dataset:
    """The pairs followed by those of `append_train_of`."""
    if arguments.append_train_of is None:
        return pairs
    appended = load_prepared(arguments.append_train_of)[0]["train"]
    split = TextSplit("appended", appended, SIDES, row_text, (arguments.append_train_of,) * 2)
    return datasets.concatenate_datasets([pairs, clean_split(split, workshop)])


def _write(
    output_dir: Path,
    data: dict[str, datasets.Dataset],
    tokenizer: JMNatTokenizer,
    counts: dict[str, dict[str, int]],
    arguments: PreparationArguments,
) -> dict:
    with replace_files(output_dir, stale=("dataset/**/*", "tokenizer/*"), last=(RESULT,)) as folder:
        tokenizer.save_pretrained(folder / "tokenizer")
        datasets.DatasetDict(data).save_to_disk(folder / "dataset")
        result = {
            "pairs": counts,
            "mean_tokens": {name: mean_lengths(split) for name, split in data.items()},
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
    """Load the data set and the tokenizer that `prepare` wrote to `directory`.

    Raises:
        ValueError: there is no complete preparation, or its tokenizer is not the one that made the ids.
    """
    directory = Path(directory)
    try:
        written = dict(json.loads((directory / RESULT).read_text()))
    except FileNotFoundError:
        raise ValueError(
            f"{directory} holds no finished preparation (preparation.json is missing); make one with `jmnat prepare`"
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
        raise ValueError(
            f"{directory} has no {split} split: prepare it again with --{split}_source and --{split}_target"
        )
    return list(dataset[split]["source"]), list(dataset[split]["target"])


def prepared_language(directory: str | Path) -> str | None:
    """The target language of prepared data; None if it was not given."""
    return read_json(Path(directory) / RESULT, ("target_lang",), PREPARE_AGAIN)["target_lang"]


def _load_dataset(folder: Path) -> datasets.DatasetDict:
    """Load a data set that `save_to_disk` wrote; ValueError naming a damaged file."""
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


def read_splits(arguments: PreparationArguments, folder: Path) -> dict[str, TextSplit]:
    """The splits that the arguments name: train and validation always, test if there is one.

    Args:
        folder: where to store the pairs of text files.
    """
    files = {name: (getattr(arguments, f"{name}_source"), getattr(arguments, f"{name}_target")) for name in SPLITS}
    if arguments.dataset_name is None:
        return read_file_splits(files, folder)
    named = [path for pair in files.values() for path in pair if path]
    if named:
        raise ValueError(
            f"dataset_name={arguments.dataset_name!r} and text files ({named[0]}) exclude each other: give one of them"
        )
    hub_names = {name: getattr(arguments, f"{name}_split") for name in SPLITS}
    place = (arguments.dataset_name, arguments.dataset_config, arguments.dataset_revision)
    return read_hub_splits(*place, hub_names, arguments.languages())


def _tokenizer_for(train: datasets.Dataset, arguments: PreparationArguments, workshop: Workshop) -> JMNatTokenizer:
    """The tokenizer of `arguments.tokenizer`, or one trained on the cleaned training text."""
    languages = arguments.languages() if arguments.moses else (None, None)
    if arguments.tokenizer is not None:
        tokenizer = load_reused_tokenizer(arguments.tokenizer)
        if arguments.lowercase and not tokenizer.lowercase:
            raise ValueError(
                f"lowercase=True, but the tokenizer of {arguments.tokenizer} keeps case: leave lowercase out"
            )
        if arguments.moses and (tokenizer.moses_source_lang, tokenizer.moses_target_lang) != languages:
            raise ValueError(
                f"moses=True with {languages[0]} and {languages[1]}, but the tokenizer of {arguments.tokenizer} has "
                f"{tokenizer.moses_source_lang} and {tokenizer.moses_target_lang}: leave moses out"
            )
        return tokenizer
    return train_joint_tokenizer(
        Texts(moses_split(train, arguments.languages(), workshop) if arguments.moses else train),
        vocab_size=arguments.vocab_size,
        lowercase=arguments.lowercase,
        moses_source_lang=languages[0],
        moses_target_lang=languages[1],
        model_max_length=arguments.max_model_tokens,
        unicode_form=arguments.unicode_form,
        marks=arguments.mark_copied,
    )


def load_reused_tokenizer(name: str) -> JMNatTokenizer:
    """The tokenizer of a folder or of a model on the Hub; ValueError if it cannot make the ids of a JM-NAT."""
    folder = fetch_folder(name, (*TOKENIZER_FILES, OF_MARIAN))
    if (folder / OF_MARIAN).is_file():
        raise ValueError(
            f"{name} has a Marian tokenizer: make an initial model with `jmnat init --from {name} --output DIR` and "
            "prepare the data with --tokenizer DIR"
        )
    check_tokenizer_files(folder)
    tokenizer = JMNatTokenizer.from_pretrained(folder)
    if tokenizer.eos_token_id is None or tokenizer("")["input_ids"][-1:] != [tokenizer.eos_token_id]:
        raise ValueError(f"the tokenizer of {name} does not end a text with its eos_token: choose another one")
    return tokenizer


def check_reused_tokenizer(name: str, vocab_size: int | None = None, unicode_form: str | None = None) -> None:
    """Refuse options of a new tokenizer that do not describe the one to reuse.

    Args:
        name: a folder, or a model on the Hub.
        vocab_size, unicode_form: as the user gave them; None if not.

    Raises:
        ValueError: as `load_reused_tokenizer`, or naming the option.
    """
    tokenizer = load_reused_tokenizer(name)
    if vocab_size not in (None, len(tokenizer)):
        raise ValueError(
            f"vocab_size={vocab_size}, but the tokenizer of {name} has {len(tokenizer)} tokens: leave vocab_size out"
        )
    normalizer = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"])
    form = "NFKC" if '"NFKC"' in normalizer else "NFC"
    if unicode_form not in (None, form):
        raise ValueError(
            f"unicode_form={unicode_form}, but the tokenizer of {name} has {form}: leave unicode_form out"
        )


def _refuse_nothing(kept: Sized, counts: dict[str, int], where: str = "") -> None:
    if not len(kept):
        raise ValueError(f"{where}no training pair is left after cleaning ({counts}): check the text and the limits")


def _refuse_empty_lines(pairs: datasets.Dataset, split: TextSplit) -> None:
    for row in np.flatnonzero(numbers(pairs, "empty"))[:1].tolist():
        place = split.place(0 if not pairs[row]["source"] else 1, row)
        raise ValueError(f"{place} is empty: every {split.name} sentence needs text on both sides")


def _refuse_long_lines(data: datasets.Dataset, split: TextSplit, allowed: int) -> None:
    counts = np.stack(token_counts(data), axis=1)  # (N, 2)
    for row in np.flatnonzero(counts.max(axis=1) > allowed)[:1].tolist():
        side = int(counts[row, 1] > allowed)
        raise ValueError(
            f"{split.place(side, row)} has {counts[row, side]} tokens: at most max_model_tokens={allowed} are allowed "
            f"in a {split.name} sentence; raise that or leave the pair out"
        )


def _check_writable(directory: Path) -> None:
    """Make the folder and check that it is writable before the long work."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ValueError(f"output_dir={directory} cannot be written ({error.strerror})") from None


def _check_free(directory: Path, overwrite: bool) -> None:
    """Refuse an earlier preparation without `overwrite`; the remains of a killed process are accepted."""
    names = (RESULT, "dataset", "tokenizer")
    existing = [name for name in names if (directory / name).exists()]
    interrupted = RESULT not in existing and (directory / UNFINISHED).exists()
    if existing and not overwrite and not interrupted:
        raise ValueError(f"output_dir={directory} already holds {existing[0]}; pass --overwrite to replace it")
    if (directory / UNFINISHED).is_file():  # a marker of earlier versions, which wrote the other files in place
        for name in names[1:] if interrupted else ():
            shutil.rmtree(directory / name, ignore_errors=True)
        (directory / UNFINISHED).unlink()
