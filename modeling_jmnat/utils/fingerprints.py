"""Fingerprints of tokenizers, data, models and files, by which later runs recognise the inputs of recorded results.

A tokenizer's fingerprint begins with a version, as in "2:4f0c...". Files of earlier versions have bare digests
instead, which `same_fingerprint` still accepts; the functions at the end of this module compute them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

VERSION = "2"
SHOWN = 12  # digits of a fingerprint in messages
BLOCK = 2**20  # bytes of a file read at a time
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# Parts of a tokenizer.json that determine ids; padding and truncation of the last call do not.
BACKEND_PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model")
# Other options that determine ids: our own (Moses, byte-pair codes of converted models), and those of Transformers.
CONVERTED_OPTIONS = ("bpe_merges", "bpe_end_of_word_pieces", "moses_escape", "moses_split_dashes")
MOSES_OPTIONS = ("moses_source_lang", "moses_target_lang")
SEGMENTERS = ("source_segmenter", "target_segmenter")
LANGUAGE_OPTIONS = ("src_lang", "tgt_lang", "legacy_behaviour", "source_start", "target_start")
ID_OPTIONS = ("lowercase", "split_special_tokens", *MOSES_OPTIONS, *CONVERTED_OPTIONS, *SEGMENTERS, *LANGUAGE_OPTIONS)


# Tokenizers ----------------------------------------------------------------------------------------------------------


def tokenizer_fingerprint(source: PreTrainedTokenizerBase | str | Path) -> str:
    """Version and SHA-256 of everything that turns text into ids and back: equal fingerprints mean equal ids.

    It is the same for a loaded tokenizer and for its folder, and ignores the order of keys, the format of the files,
    and the padding and truncation settings of the last call.

    Args:
        source: a loaded tokenizer, or a folder with tokenizer.json and tokenizer_config.json.

    Raises:
        ValueError: the files are missing or damaged.
    """
    if isinstance(source, (str, Path)):
        backend, options = _read_tokenizer(Path(source))
        state = _backend_state(backend)
    else:
        options = {name: getattr(source, name, source.init_kwargs.get(name)) for name in ID_OPTIONS}
        if source.is_fast:
            state = _backend_state(source.backend_tokenizer)
        else:  # tokenizers written in Python have only their vocabulary in common
            state = {"class": type(source).__name__, "vocabulary": source.get_vocab()}
    return _versioned(json_digest(_without_empty([state, options]), sort_keys=True))


def _read_tokenizer(folder: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The backend and the options (`ID_OPTIONS`) that a folder holds."""
    check_tokenizer_files(folder)
    file, config_file = (folder / name for name in TOKENIZER_FILES)
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower one
        raise ValueError(f"{file} is not a complete tokenizer ({error})") from None
    try:
        config = dict(json.loads(config_file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{config_file} is damaged ({error})") from None
    return backend, {name: config.get(name) for name in ID_OPTIONS}


def _backend_state(backend: Tokenizer) -> dict[str, Any]:
    content = json.loads(backend.to_str())
    return {name: content.get(name) for name in BACKEND_PARTS}


def check_tokenizer_files(folder: str | Path) -> None:
    """ValueError for a folder that lacks one of `TOKENIZER_FILES`."""
    for name in TOKENIZER_FILES:
        if not (Path(folder) / name).is_file():
            raise ValueError(f"{folder} holds no tokenizer ({name} is missing)")


def _without_empty(value):
    """Drop entries that are None, False or empty, because versions of the libraries differ in writing them."""
    if isinstance(value, dict):
        entries = {key: _without_empty(entry) for key, entry in value.items()}
        return {key: entry for key, entry in entries.items() if entry or type(entry) in (int, float)}
    if isinstance(value, (list, tuple)):
        return [_without_empty(entry) for entry in value]
    return value


def _versioned(digest: str) -> str:
    return f"{VERSION}:{digest}"


def same_fingerprint(recorded: object, now: str, legacy: Callable[[], str]) -> bool:
    """Whether a recorded fingerprint equals the current one; a bare digest is compared with `legacy()`."""
    if isinstance(recorded, str) and ":" not in recorded:
        return recorded == legacy()
    return recorded == now


def shown(fingerprint: str) -> str:
    """The beginning of a fingerprint, for messages."""
    return fingerprint.rpartition(":")[2][:SHOWN]


# Data, models, files -------------------------------------------------------------------------------------------------


def data_settings(dataset, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The settings that identify a training set: its number of pairs, and digests of ids and tokenizer.

    Args:
        dataset: `datasets.Dataset` with the columns input_ids and labels.
    """
    arrow = dataset.with_format("arrow")
    ids = ids_digest(arrow[name][:] for name in ("input_ids", "labels"))
    return {"pairs": len(dataset), "ids": ids, "tokenizer": tokenizer_fingerprint(tokenizer)}


def ids_digest(columns: Iterable[Any]) -> str:
    """BLAKE2 digest of the ids in `pyarrow.ChunkedArray`s of lists, in order."""
    state = hashlib.blake2b(digest_size=16)
    for column in columns:
        for chunk in column.chunks:
            state.update(chunk.flatten().to_numpy().tobytes())
    return state.hexdigest()


def sources_fingerprint(tokenizer: PreTrainedTokenizerBase, lines: Iterable[str]) -> str:
    """Version and SHA-256 of a text and the tokenizer that reads it."""
    return _versioned(digest([tokenizer_fingerprint(tokenizer), *lines]))


def digest(parts: Iterable[str | bytes]) -> str:
    """SHA-256 of the parts and their lengths."""
    state = hashlib.sha256()
    for part in parts:
        part = part.encode("utf-8") if isinstance(part, str) else part
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()


def number_of_text(text: str) -> int:
    """Eight bytes of BLAKE2 as a number. Among five million texts, two collide in one of a million corpora."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def json_digest(value, sort_keys: bool = False) -> str:
    """SHA-256 of plain values as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=sort_keys).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
    return state.hexdigest()


def model_digest(model: str | Path) -> str:
    """Digest of the configuration, tokenizer and weights in a folder; for a model of the Hub, digest of its name."""
    folder = Path(model)
    if not folder.is_dir():
        return digest([str(model)])
    parts = [(folder / "config.json").read_bytes()]
    for path in sorted(folder.iterdir()):
        if path.name in TOKENIZER_FILES:
            parts.append(path.read_bytes())
        if path.suffix == ".safetensors" or path.name.startswith("pytorch_model"):
            parts.append(bytes.fromhex(file_digest(path)))
    return digest(parts)


def weights_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of all weights of a model (its `state_dict`, on the CPU) and their names."""
    state = hashlib.sha256()
    for name, weight in sorted(tensors.items()):
        state.update(name.encode("utf-8"))
        state.update(weight.contiguous().numpy().tobytes())
    return state.hexdigest()


# Digests in files of earlier versions, only for `same_fingerprint` ---------------------------------------------------


def legacy_folder_digest(folder: str | Path) -> str:
    """The digest in earlier preparation.json and begun_with.json: of all parts and options, without a version."""
    check_tokenizer_files(folder)
    content: dict[str, Any] = {}
    for name in TOKENIZER_FILES:
        content.update(json.loads((Path(folder) / name).read_text(encoding="utf-8")))
    options = ("lowercase", *MOSES_OPTIONS, "split_special_tokens")
    kept = {key: content.get(key) for key in BACKEND_PARTS + options}
    kept.update({key: content[key] for key in CONVERTED_OPTIONS if content.get(key)})
    return json_digest(kept, sort_keys=True)


def legacy_tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """The digest in earlier run_settings.json and plans: without `lowercase` and `split_special_tokens`."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        for name in ("truncation", "padding"):  # left behind by the last call
            state.pop(name, None)
    else:
        state = tokenizer.get_vocab()
    options = {name: tokenizer.init_kwargs.get(name) for name in MOSES_OPTIONS}
    options.update({name: value for name in CONVERTED_OPTIONS if (value := tokenizer.init_kwargs.get(name))})
    return json_digest([state, options], sort_keys=True)


def legacy_sources_digest(tokenizer: PreTrainedTokenizerBase, lines: Sequence[str]) -> str:
    """The digest of tokenizer and source lines in earlier distillation plans."""
    return digest([legacy_tokenizer_digest(tokenizer), *lines])
