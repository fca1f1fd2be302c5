"""Locks that let one process at a time use an output folder or file. They end with their process, however it ends."""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .atomic_files import remove_killed

LOCK = ".lock"
POLL_SECONDS = 0.1


@contextmanager
def folder_lock(folder: str | Path, argument: str, beside: bool = False) -> Iterator[None]:
    """Lock an output folder for this process inside this context. The folder is created if it does not exist.

    Args:
        argument: the argument that names the folder, for the message.
        beside: for folders that are replaced as a whole: lock a file `.NAME.lock` beside the folder instead of `.lock`
            in it, and do not create the folder. Either lock keeps out both kinds of processes.

    Raises:
        ValueError: another process holds one of the two locks.
        OSError: the folder is a file, or not writable.
    """
    path = Path(folder).resolve()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name a folder")
    is_new = not beside and not path.exists()
    inside, outside = path / LOCK, path.parent / f".{path.name}{LOCK}"
    own, other = (outside, inside) if beside else (inside, outside)
    own.parent.mkdir(parents=True, exist_ok=True)
    named = f"{argument}={folder}"
    try:
        with _held(own, named, "folder"):
            # Only with the own lock in hand: of two processes that begin together, at least one sees the other.
            if _is_held(other):
                raise _in_use(named, "folder")
            yield
    finally:
        if is_new:
            with suppress(OSError):  # fails if something has been written into it
                path.rmdir()


@contextmanager
def file_lock(file: str | Path | None, argument: str) -> Iterator[None]:
    """Lock an output file for this process inside this context, by a file `.NAME.lock` beside it.

    What killed processes left beside it is deleted. None, devices, pipes and paths that cannot be written are not
    locked.

    Raises:
        ValueError: another process holds the lock.
    """
    path = Path(os.devnull if file is None else file).resolve()
    if not os.access(path.parent, os.W_OK) or (path.exists() and not path.is_file()):
        yield
        return
    with _held(path.with_name(f".{path.name}{LOCK}"), f"{argument}={file}", "file"):
        remove_killed(path)
        yield


@contextmanager
def _held(path: Path, named: str, kind: str) -> Iterator[None]:
    """Hold the lock `path`; ValueError, about what is `named`, if another process holds it."""
    descriptor = _open_locked(path)
    if descriptor is None:
        raise _in_use(named, kind)
    try:
        yield
    finally:
        with suppress(OSError):
            if _is_at(descriptor, path):
                path.unlink()
        os.close(descriptor)


def _in_use(named: str, kind: str) -> ValueError:
    return ValueError(f"{named} is in use by another process: wait until it ends or choose another {kind}")


def _is_held(path: Path) -> bool:
    """Whether a process holds the lock `path`; a file that a killed process left is not held."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def _open_locked(path: Path) -> int | None:
    """The file `path`, opened and locked; None if another process holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        held = try_lock(descriptor)
        if held and _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)
        if not held:
            return None
        # Locked, but its previous owner has removed the file since it was opened: try again.


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def try_lock(descriptor: int, seconds: float = 0.0) -> bool:
    """Lock an open file, trying for some time; False if another process holds it. Child processes inherit the lock.

    True without a lock on Windows and on file systems that have no such locks.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
            return True
