"""Handling of signals inside a `with` block, for commands that are told to stop."""

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HANGUP = getattr(signal, "SIGHUP", None)  # sent when the terminal is closed; not on Windows
# Signals that end a command besides SIGINT.
ENDING = (signal.SIGTERM, *([] if HANGUP is None else [HANGUP]))


@contextmanager
def handling(handler: Callable, *numbers: int) -> Iterator[None]:
    """Call `handler(number, frame)` on these signals inside this context; no effect outside of the main thread.

    SIGHUP stays ignored under nohup. When it comes, output to the closed terminal is discarded, because writing it
    would fail before the command has ended in order.
    """

    def handle(number, frame):
        if number == HANGUP:
            leave_closed_terminal()
        handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = HANGUP is not None and signal.getsignal(HANGUP) is signal.SIG_IGN
    previous = {number: signal.signal(number, handle) for number in numbers if not (ignored and number == HANGUP)}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


@contextmanager
def received(*numbers: int) -> Iterator[list[int]]:
    """Yield a list to which these signals are appended as they arrive, without any other effect."""
    noted: list[int] = []
    with handling(lambda number, frame: noted.append(number), *numbers):
        yield noted


def terminated_as_interrupted():
    """A context in which SIGTERM and SIGHUP raise `KeyboardInterrupt`, as SIGINT does."""
    return handling(signal.default_int_handler, *ENDING)


def leave_closed_terminal() -> None:
    """Let standard output and error go to the null device where they were a terminal that is closed."""
    for descriptor in (1, 2):
        try:
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        except OSError:  # closed
            pass
