"""Native calls that may take long, or for ever, and can't be interrupted themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["interruptible"]

Result = TypeVar("Result")
SECONDS = 0.1  # between two looks


def interruptible(call: Callable[[], Result]) -> Result:
    """What a call returns, or raises; Ctrl-C ends the wait for it at once.

    The call runs in a thread, and must let others run. After Ctrl-C it goes on by itself, until the process ends.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # it is raised where the result is wanted
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(SECONDS)
    return future.result()
