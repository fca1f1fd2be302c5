"""One process at a time in an output folder. A lock ends with the process that holds it, however that ends."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = ".lock"
POLL_SECONDS = 0.1


@contextmanager
def folder_lock(folder: str | Path, argument: str, beside: bool = False) -> Iterator[None]:
    """Hold an output folder for this process inside this context. The folder is made where it does not exist.

    Args:
        argument: the name by which the user gave the folder, for the message.
        beside: put the file `.NAME.lock` beside the folder, which is then not made, instead of `.lock` into it: for
            folders that are replaced as a whole.

    Raises:
        ValueError: another process holds it.
        OSError: it is a file, or not writable.
    """
    path = Path(folder).resolve()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name a folder")
    is_new = not beside and not path.exists()
    path = path.with_name(f".{path.name}{LOCK}") if beside else path / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _open_locked(path)
    if descriptor is None:
        raise ValueError(
            f"{argument}={folder} is in use by another process: wait for its end or choose another folder"
        )
    try:
        yield
    finally:
        with suppress(OSError):
            if _is_at(descriptor, path):
                path.unlink()
            if is_new:
                path.parent.rmdir()  # fails where it holds what was to be written
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
        # Held, but removed since it was opened by the process that held it before: once more.


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def try_lock(descriptor: int, seconds: float = 0.0) -> bool:
    """Lock an open file, trying for some time; False if others hold it. Processes that inherit the file hold it, too.

    Without effect on Windows, which has no such locks.
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
