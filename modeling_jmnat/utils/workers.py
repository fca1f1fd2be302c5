"""Control of processes that libraries fork for parallel work."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .signals import HANGUP

POLL_SECONDS = 1.0
LONGEST_SOCKET_PATH = 103  # bytes, on macOS; Linux allows four more
_owner: int | None = None


def has_room_for_sockets(folder: str, characters: int) -> bool:
    """Whether a folder's path leaves room for sockets whose paths are longer by so many characters."""
    return len(os.fsencode(folder)) + characters <= LONGEST_SOCKET_PATH


@contextmanager
def ending_together() -> Iterator[None]:
    """Let processes that are forked in this context end with this one, and ignore Ctrl-C and SIGHUP.

    Otherwise those of a killed process would wait for work forever, and keep its lock.
    """
    global _owner
    _owner = os.getpid()
    try:
        yield
    except Exception as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # after one, `datasets` fails with another error
            raise error.__context__ from None
        raise
    finally:
        _owner = None


def _begin_in_child() -> None:
    global _owner
    owner, _owner = _owner, None
    if owner is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if HANGUP is not None:
        signal.signal(HANGUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == owner:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
