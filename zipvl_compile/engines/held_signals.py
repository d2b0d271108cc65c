"""Signals while a library runs that calls back into Python, where the exception of a handler would be lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether one came, which the library should be told to stop for.

    A signal that came is delivered to the handler from before when the block ends, whatever ended it. Threads other
    than the main one get no signals.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, lambda sent, _: came.append(sent)) for number in _HELD}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(came[0])
