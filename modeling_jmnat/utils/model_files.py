"""Checks of a saved model's files before they are loaded, because the errors of libraries do not name the file."""

import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .fingerprints import file_digest
from .json_files import read_json

MANIFEST = "manifest.json"  # of a training's checkpoint: sizes and checksums of its files
JSON_FILES = {  # with keys that they must have; each file may be missing
    "config.json": (),
    "generation_config.json": (),
    "tokenizer_config.json": (),
    "tokenizer.json": ("model", "added_tokens"),
}
# In the order in which Transformers looks for them.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
GET_IT_AGAIN = "save or download the model again"


def check_model_files(folder: str | Path) -> None:
    """Refuse a folder with a damaged file, or with an index of weights that names missing files.

    Of files of weights only the header is read, because reading the numbers takes time; of a training's checkpoint,
    they are compared with its manifest.

    Raises:
        ValueError: naming the file.
    """
    folder = Path(folder)
    for name, keys in JSON_FILES.items():
        if (folder / name).is_file():
            read_json(folder / name, keys, GET_IT_AGAIN)
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            check_safetensors(path)
        else:
            check_archive(path)
        if (damage := changed_file(folder, path.name)) is not None:
            raise ValueError(f"{folder} is damaged: {damage}. Use another checkpoint, or one of its copies")


def changed_file(checkpoint: Path, name: str | None = None) -> str | None:
    """A description of the first file that differs from the manifest; None if none does or there is no manifest.

    Args:
        name: check only this file.
    """
    try:
        files = read_json(checkpoint / MANIFEST, keys=("files",))["files"]
        recorded = {file: (entry["bytes"], entry["sha256"]) for file, entry in files.items()}
    except FileNotFoundError:  # no checkpoint, or one of an earlier version
        return None
    except (ValueError, AttributeError, TypeError, KeyError):
        return f"{MANIFEST} cannot be read"
    for file, (size, sha256) in recorded.items():
        path = checkpoint / file
        if name not in (None, file):
            continue
        if not path.is_file():
            return f"{file} is missing"
        if path.stat().st_size != size or file_digest(path) != sha256:
            return f"{file} is not as it was written"
    return None


def weight_files(folder: Path) -> list[Path]:
    """The files from which Transformers would read weights; ValueError for an index that names missing files."""
    for name in WEIGHTS:
        path = folder / name
        if not path.is_file():
            continue
        if path.suffix != ".json":
            return [path]
        shards = sorted(set(read_json(path, ("weight_map",), GET_IT_AGAIN)["weight_map"].values()))
        for shard in shards:
            if not (folder / shard).is_file():
                raise ValueError(f"{path} names {shard}, which is missing: {GET_IT_AGAIN}")
        return [folder / shard for shard in shards]
    return []


def check_safetensors(path: Path) -> None:
    try:
        with safe_open(path, framework="pt"):  # refuses a file shorter than its header says
            pass
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short ({error}): {GET_IT_AGAIN}") from None


def check_archive(path: Path) -> None:
    with open(path, "rb") as file:
        is_archive = file.read(2) == b"PK"  # older ones are pickles
    if is_archive and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is cut short: {GET_IT_AGAIN}")
