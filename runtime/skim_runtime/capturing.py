"""While a CUDA graph is captured, nothing else of the process may allocate on the GPU: sessions wait for each other.

onnxruntime captures in CUDA's global mode, in which an allocation by any thread spoils the capture.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["capturing", "running"]

_changed = threading.Condition()
_running = 0  # runs at the moment, of all sessions; -1 while one of them is captured


@contextmanager
def running() -> Iterator[None]:
    """Around a run of a session that keeps CUDA graphs; several may run at the same time."""
    yield from _counted(lambda: _running >= 0, 1)


@contextmanager
def capturing() -> Iterator[None]:
    """Around a run that is captured: alone."""
    yield from _counted(lambda: _running == 0, -1)


def _counted(free: Callable[[], bool], change: int) -> Iterator[None]:
    global _running
    with _changed:
        _changed.wait_for(free)
        _running += change
    try:
        yield
    finally:
        with _changed:
            _running -= change
            _changed.notify_all()
