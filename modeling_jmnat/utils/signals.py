"""Signals inside a `with` block: what a command does when it is told to stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def handling(handler: Callable, *numbers: int) -> Iterator[None]:
    """Call `handler(number, frame)` on these signals inside this context; only in the main thread, which gets them."""
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
    """Gives a list in which these signals are noted, in the order they come; nothing else happens."""
    noted: list[int] = []
    with handling(lambda number, frame: noted.append(number), *numbers):
        yield noted


def terminated_as_interrupted():
    """A context in which SIGTERM raises `KeyboardInterrupt`, as SIGINT does."""
    return handling(signal.default_int_handler, signal.SIGTERM)
