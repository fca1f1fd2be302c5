"""Output that is either complete or unchanged: written under another name, then renamed.

One file: `atomic_file`, `atomic_text_file`, `write_json`. A whole folder: `whole_folder`. Some files of a folder:
`replace_files`. Temporary files: `scratch_folder`. The last three write into a hidden folder `.unfinished` on the same
file system; the next call removes what a killed process left there. Only one process may use them at a time (see
`locks`).
"""

import contextlib
import errno
import gzip
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO

UNFINISHED = ".unfinished"


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which is renamed to `path` when the block ends without an error.

    Of a link, the target is replaced. For a device or a pipe, such as /dev/null, the path itself is yielded.

    Raises:
        OSError: the folder does not exist or is not writable, or the disk is full; a file at `path` is left unchanged.
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


def remove_killed(path: Path) -> None:
    """Delete what killed processes left of `atomic_file(path)`; only while no other process can be writing it."""
    temporary = re.compile(rf"\.{re.escape(path.name)}\.\d+\.tmp")
    for other in path.parent.iterdir():
        if temporary.fullmatch(other.name):
            other.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_text_file(path: str | Path) -> Iterator[IO[str]]:
    """Yield a UTF-8 file for writing (`.gz` is compressed) that appears at `path` when the block ends without error.

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
    """Check before any work that `path` can be written later; an existing file is left unchanged.

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
    """Leaves a block of `atomic_file` without renaming."""


@contextlib.contextmanager
def whole_folder(path: str | Path, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `path` when the block succeeds, replacing an earlier folder there.

    What is at `path` when the block begins is replaced if it is unchanged at the end. Callers that replace only some
    folders look at it at the beginning of the block, and do all long work in the block. Of a link, the target is
    replaced.

    Args:
        replace: False: replace nothing but an empty folder.

    Raises:
        OSError: `path` is a file, its parent is not writable, the disk is full, or another process has written to
            `path` inside the block; what is there is kept.
    """
    path = Path(path).resolve()
    _check_no_file(path)
    earlier = _aside(path, "earlier")
    if earlier.exists() and not path.exists():  # killed between the two renames of `publish_folder`
        earlier.rename(path)
    shutil.rmtree(_aside(path, "removed"), ignore_errors=True)
    folder, found = _new_folder(path), _entries(path) if replace else {}
    try:
        yield folder
        _settle(folder)
        if found and _entries(path) == found:
            _replace(path, folder)
        else:
            _place(folder, path)
    finally:
        _remove(folder)


def publish_folder(folder: Path, path: Path) -> None:
    """Rename a complete folder to `path`, replacing an earlier one; safe against a power cut."""
    _settle(folder)
    _replace(path, folder)


def _replace(path: Path, folder: Path) -> None:
    """Rename `folder` to `path`, where there may be an earlier one."""
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


def _place(folder: Path, path: Path) -> None:
    """Rename `folder` to `path`, where there may be an empty one only."""
    try:
        os.rename(folder, path)  # fails if there is something in it
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise FileExistsError(
            f"{path} has been written by another process since this command began, and is left as it is: name another "
            "folder"
        ) from None


def _entries(folder: Path) -> dict[Path, tuple[int, ...] | None]:
    """All files in a folder with what changes when they are written, and its subfolders; none if it does not exist."""
    found: dict[Path, tuple[int, ...] | None] = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        is_folder = stat.S_ISDIR(status.st_mode)
        found[path.relative_to(folder)] = None if is_folder else (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def remove_folder(path: Path) -> None:
    """Delete a folder so that a crash never leaves a part of it under its name."""
    _delete(path, _aside(path, "removed"))


@contextlib.contextmanager
def replace_files(folder: str | Path, stale: Sequence[str] = (), last: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty folder whose files replace those in `folder` when the block succeeds; other files are kept.

    `folder` is created if it does not exist. Files in subfolders are replaced as well.

    Args:
        stale: patterns of old files to delete when the new ones are in place.
        last: names of files that mark the folder as complete. They are removed before anything is replaced and are
            put in place last, so that a process that is killed in between leaves a folder without them.

    Raises:
        OSError: `folder` is a file or not writable, or the disk is full; nothing is changed.
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
            with contextlib.suppress(OSError):  # fails if others have put something into it
                folder.rmdir()
        raise
    _move_files(temporary, folder, stale, last)
    _remove(temporary)


@contextlib.contextmanager
def scratch_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder inside `folder` that is deleted after the block, or by the next call after a kill.

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
        with contextlib.suppress(OSError):  # fails if there are other files in it
            path.parent.rmdir()
    for name in names:
        if name.as_posix() in last:
            (temporary / name).replace(folder / name)


def _check_no_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name a folder")


def _aside(path: Path, ending: str) -> Path:
    """Where to move an old `path`: to ".earlier" until its successor is in place, to ".removed" for deletion."""
    return path.parent / UNFINISHED / f"{path.name}.{ending}"


def _rename(folder: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)


def _delete(folder: Path, aside: Path) -> None:
    """Rename, then delete, so that a partly deleted folder does not look like a whole one."""
    _rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _new_folder(path: Path) -> Path:
    """An empty folder for writing the content of `path`."""
    folder = path.parent / UNFINISHED / path.name
    shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed
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
    with contextlib.suppress(OSError):  # fails while others write beside it
        folder.parent.rmdir()


def _settle(folder: Path) -> None:
    """Flush a folder to disk, its files as readable as the folder: some libraries write for the owner only."""
    readable = folder.stat().st_mode & 0o666
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            path.chmod(path.stat().st_mode | readable)
        _to_disk(path)


def _to_disk(path: Path) -> None:
    if os.name != "posix":  # other systems only flush files that are open for writing
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def same_path(one: str, other: str) -> bool:
    """Whether two paths are the same file, however they are spelled."""
    return one == other or os.path.realpath(one) == os.path.realpath(other)
