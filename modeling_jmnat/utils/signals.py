"""Handling of signals inside a `with` block, for commands that are told to stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def handling(handler: Callable, *numbers: int) -> Iterator[None]:
    """Call `handler(number, frame)` on these signals inside this context; no effect outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in numbers}
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
    """A context in which SIGTERM raises `KeyboardInterrupt`, as SIGINT does."""
    return handling(signal.default_int_handler, signal.SIGTERM)
