"""The mean of several checkpoints of one run, tensor by tensor, as an ordinary model folder.

It averages the tensors of the files, not the `state_dict` of loaded models, so that a tied matrix is stored once.
"""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..utils.atomic_files import UNFINISHED, whole_folder, write_json
from ..utils.finite import is_finite
from ..utils.json_files import read_json
from ..utils.locks import LOCK, folder_lock
from ..utils.model_files import changed_file

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
AVERAGING_NAME = "averaging.json"
# Taken from the first checkpoint; optimizer, scheduler and trainer states are left behind.
COPIED_PATTERNS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.spm",
    "*.py",
)
# Fields in which the configurations of two checkpoints of one model may differ.
FREE_CONFIG_FIELDS = {"transformers_version", "dtype", "torch_dtype", "_name_or_path"}


class _Weights:
    """The safetensors file or files of one checkpoint folder, opened lazily: one tensor in memory at a time."""

    def __init__(self, directory: Path, stack: ExitStack):
        self.directory = directory
        if (directory / INDEX_NAME).is_file():
            names = sorted(set(read_json(directory / INDEX_NAME, ("weight_map",))["weight_map"].values()))
            missing = [name for name in names if not (directory / name).is_file()]
            if missing:
                raise ValueError(f"{directory / INDEX_NAME} names {missing[0]}, which is missing: copy it there")
        elif (directory / WEIGHTS_NAME).is_file():
            names = [WEIGHTS_NAME]
        elif directory.is_dir():
            raise ValueError(f"{directory} holds no {WEIGHTS_NAME}: each checkpoint must be a saved model folder")
        else:
            raise ValueError(f"{directory} is not a folder: each checkpoint must be a saved model folder")
        self._files = {}
        for name in names:
            try:
                file = stack.enter_context(safe_open(directory / name, framework="pt"))
            except SafetensorError as error:
                raise ValueError(f"{directory / name} is not a complete safetensors file ({error})") from None
            if (damage := changed_file(directory, name)) is not None:
                raise ValueError(f"{directory} is damaged: {damage}. Average other checkpoints")
            self._files.update(dict.fromkeys(file.keys(), file))

    def keys(self) -> set[str]:
        return set(self._files)

    def shape(self, key: str) -> list[int]:
        return list(self._files[key].get_slice(key).get_shape())

    def tensor(self, key: str) -> torch.Tensor:
        return self._files[key].get_tensor(key)


def average_checkpoints(directories: Sequence[str | Path], output_dir: str | Path) -> Path:
    """Write the mean of the checkpoints in `directories` to `output_dir` and return its path.

    Sums are computed in float64; the mean is stored in the dtype of the first checkpoint, from which configuration,
    generation configuration and tokenizer are copied. The folder is written under another name and renamed when
    complete, so that a full disk or a kill never leaves half a model. A folder that holds an earlier average and
    nothing else is replaced; any other one with content is refused.

    Raises:
        ValueError: there are no checkpoints, one is given twice, their tensors, configurations or tokenizers do not
            match, or `output_dir` has other content.
        OSError: a file cannot be read or written.
    """
    directories = [Path(directory) for directory in directories]
    output_dir = Path(output_dir)
    _check_arguments(directories, output_dir)
    with ExitStack() as stack:
        checkpoints = [_Weights(directory, stack) for directory in directories]
        for checkpoint in checkpoints[1:]:
            _check_same_model(checkpoints[0], checkpoint)
        with folder_lock(output_dir, "output_dir", beside=True), whole_folder(output_dir) as folder:
            _check_replaceable(output_dir)  # again, because another process may have ended since
            tensors = {key: _mean(checkpoints, key) for key in sorted(checkpoints[0].keys())}
            _write_folder(folder, tensors, directories)
    return output_dir


def _check_arguments(directories: list[Path], output_dir: Path) -> None:
    if not directories:
        raise ValueError("directories is empty: at least one checkpoint folder is needed")
    resolved = [directory.resolve() for directory in directories]
    for position, directory in enumerate(resolved):
        if directory in resolved[:position]:
            raise ValueError(f"{directories[position]} is given twice: each checkpoint counts once")
    if output_dir.resolve() in resolved:
        raise ValueError(f"output_dir {output_dir} is one of the checkpoints: choose another folder")
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"output_dir {output_dir} is a file: choose a folder")
    _check_replaceable(output_dir)


def _check_replaceable(output_dir: Path) -> None:
    """ValueError unless `output_dir` is new or empty, or has just the files of an earlier average."""
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return
    if not (output_dir / AVERAGING_NAME).is_file():
        raise ValueError(f"output_dir {output_dir} exists and does not hold an earlier average: name a new folder")
    written = (AVERAGING_NAME, WEIGHTS_NAME, *COPIED_PATTERNS, LOCK)
    for path in sorted(output_dir.iterdir()):
        is_written = path.is_file() and any(fnmatch(path.name, pattern) for pattern in written)
        if not is_written and path.name != UNFINISHED:  # which, as LOCK, a killed process leaves
            raise ValueError(
                f"output_dir {output_dir} holds more than an earlier average ({path.name}), which would be lost: name "
                "a new folder"
            )


def _check_same_model(first: _Weights, other: _Weights) -> None:
    """ValueError for two checkpoints of different models, naming what differs."""
    for here, there in ((first, other), (other, first)):
        missing = sorted(here.keys() - there.keys())
        if missing:
            raise ValueError(f"{there.directory} lacks the tensor {missing[0]} that {here.directory} has")
    for key in sorted(first.keys()):
        if first.shape(key) != other.shape(key):
            raise ValueError(
                f"tensor {key} has shape {other.shape(key)} in {other.directory} and {first.shape(key)} in "
                f"{first.directory}: only checkpoints of one model can be averaged"
            )
    configs = [_read_json(weights.directory / "config.json") for weights in (first, other)]
    for field in sorted(set().union(*configs) - FREE_CONFIG_FIELDS):
        if configs[0].get(field) != configs[1].get(field):
            raise ValueError(
                f"config field {field} is {configs[1].get(field)} in {other.directory} and {configs[0].get(field)} in "
                f"{first.directory}: only checkpoints of one model can be averaged"
            )
    tokenizers = [weights.directory / "tokenizer.json" for weights in (first, other)]
    if all(path.is_file() for path in tokenizers) and tokenizers[0].read_bytes() != tokenizers[1].read_bytes():
        raise ValueError(f"{tokenizers[1]} differs from {tokenizers[0]}: checkpoints must share one tokenizer")


def _read_json(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def _mean(checkpoints: list[_Weights], key: str) -> torch.Tensor:
    first = checkpoints[0].tensor(key)
    if not first.is_floating_point():
        for checkpoint in checkpoints[1:]:
            if not torch.equal(checkpoint.tensor(key), first):
                raise ValueError(f"tensor {key} holds {first.dtype} values that differ: they have no mean")
        return first
    total = first.double()
    for checkpoint in checkpoints[1:]:
        total += checkpoint.tensor(key).double()
    if not is_finite(total):
        directories = ", ".join(str(checkpoint.directory) for checkpoint in checkpoints)
        raise ValueError(f"{key} is not finite in one of {directories}: average earlier checkpoints")
    return (total / len(checkpoints)).to(first.dtype)


def _write_folder(folder: Path, tensors: dict[str, torch.Tensor], directories: list[Path]) -> None:
    for pattern in COPIED_PATTERNS:
        for file in sorted(directories[0].glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
    names = [directory.resolve().name for directory in directories]
    write_json(folder / AVERAGING_NAME, {"checkpoints": names})
    try:
        save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"cannot write {WEIGHTS_NAME}: {error}") from None
