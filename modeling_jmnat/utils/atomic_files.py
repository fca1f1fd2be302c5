"""Output files that are either complete or not there: written under another name, renamed at the end."""

import contextlib
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; what is written there moves to `path` when the block ends well.

    A link stays, what it points to is replaced. A device or a pipe, such as /dev/null, is itself the path given.

    Raises:
        OSError: the folder does not exist or is not writable, or the disk is full; a file at `path` stays as it was.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder: cannot write {path.name} there")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_text_file(path: str | Path) -> Iterator[TextIO]:
    """Open a UTF-8 file for writing (`.gz` is compressed) that appears at `path` when the block ends without error.

    Raises:
        OSError: as `atomic_file`.
    """
    open_file = gzip.open if Path(path).suffix == ".gz" else open
    with atomic_file(path) as temporary, open_file(temporary, "wt", encoding="utf-8", newline="\n") as file:
        yield file


def write_json(path: str | Path, value) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_text_file(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def check_writable(path: str | Path) -> None:
    """Refuse now, before any work, what could not be written later; a file that is there stays.

    Raises:
        OSError: as `atomic_file`.
    """
    try:
        with atomic_file(path) as temporary:
            if temporary != Path(path):
                temporary.touch()
            raise _Tried
    except _Tried:
        pass


class _Tried(Exception):
    """Leaves a block of `atomic_file` so that nothing is renamed."""


def same_path(one: str, other: str) -> bool:
    """Equal however they are spelled."""
    return one == other or os.path.realpath(one) == os.path.realpath(other)
