"""Output that is either complete or as it was before: written under another name, then renamed.

One file: `atomic_file`, `atomic_text_file`, `write_json`. A whole folder: `whole_folder`. Files among others in a
folder: `replace_files`. What nobody needs afterwards: `scratch_folder`. The last three write into a hidden folder
`.unfinished` on the same file system; what a killed process leaves there is removed by the next call. They expect to
be alone, see `locks`.
"""

import contextlib
import gzip
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO

UNFINISHED = ".unfinished"


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the same folder, which is renamed to `path` when the block ends without an error.

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
        _to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_text_file(path: str | Path) -> Iterator[IO[str]]:
    """Open a UTF-8 file for writing (`.gz` is compressed) that appears at `path` when the block ends without error.

    Raises:
        OSError: as `atomic_file`.
    """
    open_file: Callable[..., IO[str]] = gzip.open if Path(path).suffix == ".gz" else open
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


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty folder that is renamed to `path` when the block succeeds; an earlier folder there is replaced.

    A link stays, what it points to is replaced.

    Raises:
        OSError: `path` is a file, or its place is not writable, or the disk is full; an earlier folder stays.
    """
    path = Path(path).resolve()
    _check_no_file(path)
    earlier = _aside(path, "earlier")
    if earlier.exists() and not path.exists():  # killed between the two renames of `publish_folder`
        earlier.rename(path)
    shutil.rmtree(_aside(path, "removed"), ignore_errors=True)
    folder = _new_folder(path)
    try:
        yield folder
        publish_folder(folder, path)
    finally:
        _remove(folder)


def publish_folder(folder: Path, path: Path) -> None:
    """Rename a complete folder to `path`, replacing an earlier one; safe against a power cut."""
    _settle(folder)
    earlier = _aside(path, "earlier")
    try:
        if path.exists():
            _rename(path, earlier)
        folder.rename(path)
    finally:
        if earlier.exists() and not path.exists():
            earlier.rename(path)
    if earlier.exists():
        _delete(earlier, _aside(path, "removed"))


def remove_folder(path: Path) -> None:
    """Delete a folder so that a crash in between leaves nothing of it under its name."""
    _delete(path, _aside(path, "removed"))


@contextlib.contextmanager
def replace_files(folder: str | Path, stale: Sequence[str] = (), last: Collection[str] = ()) -> Iterator[Path]:
    """Give an empty folder whose files replace those in `folder` when the block ends well; other files there stay.

    `folder` is made where it does not exist. Files in folders inside take their places likewise.

    Args:
        stale: patterns of files that do not stay beside the new ones.
        last: names of files by which others see that the rest is there. They are removed before anything is replaced
            and put in place at the end: a process that is killed in between leaves a folder that lacks them.

    Raises:
        OSError: `folder` is a file or not writable, or the disk is full; everything stays as it was.
    """
    folder = Path(folder)
    _check_no_file(folder)
    is_new = not folder.exists()
    temporary = _new_folder(folder / "files")
    try:
        yield temporary
        _settle(temporary)
    except BaseException:
        _remove(temporary)
        if is_new:
            with contextlib.suppress(OSError):  # others have put something into it
                folder.rmdir()
        raise
    _move_files(temporary, folder, stale, last)
    _remove(temporary)


@contextlib.contextmanager
def scratch_folder(folder: str | Path) -> Iterator[Path]:
    """Give an empty folder inside `folder` that is gone after the block; what a killed process left there is removed.

    Raises:
        OSError: `folder` is a file or not writable.
    """
    scratch = _new_folder(Path(folder) / "scratch")
    try:
        yield scratch
    finally:
        _remove(scratch)


def _move_files(temporary: Path, folder: Path, stale: Sequence[str], last: Collection[str]) -> None:
    names = sorted(path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file())
    for marker in last:
        (folder / marker).unlink(missing_ok=True)
    for name in names:
        if name.as_posix() not in last:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).replace(folder / name)
    old = {path for pattern in stale for path in folder.glob(pattern) if path.is_file()}
    for path in old - {folder / name for name in names}:
        path.unlink()
        with contextlib.suppress(OSError):  # other files are in it
            path.parent.rmdir()
    for name in names:
        if name.as_posix() in last:
            (temporary / name).replace(folder / name)


def _check_no_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name a folder")


def _aside(path: Path, ending: str) -> Path:
    """Where an old `path` is moved: to ".earlier" until its successor is in place, to ".removed" for deletion."""
    return path.parent / UNFINISHED / f"{path.name}.{ending}"


def _rename(folder: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)


def _delete(folder: Path, aside: Path) -> None:
    """Rename first: a folder that is deleted in part must not look like a whole one."""
    _rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _new_folder(path: Path) -> Path:
    """An empty folder in which to write what will be at `path`."""
    folder = path.parent / UNFINISHED / path.name
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    for attempts_left in reversed(range(100)):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            break
        except (FileNotFoundError, FileExistsError):  # another call has just removed the empty parent
            if not attempts_left:
                raise
    return folder


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # others write beside it
        folder.parent.rmdir()


def _settle(folder: Path) -> None:
    """Bring a folder to the disk, its files readable for whom it is: some libraries write for the owner alone."""
    readable = folder.stat().st_mode & 0o666
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            path.chmod(path.stat().st_mode | readable)
        _to_disk(path)


def _to_disk(path: Path) -> None:
    if os.name != "posix":  # other systems flush files that are open for writing alone
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def same_path(one: str, other: str) -> bool:
    """Equal however they are spelled."""
    return one == other or os.path.realpath(one) == os.path.realpath(other)
