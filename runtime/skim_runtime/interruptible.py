"""Native calls that may take long, or for ever, and can't be interrupted themselves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["ENDING", "THREADS", "ends_at_once", "interruptible", "left_running"]

Result = TypeVar("Result")
ENDING = (signal.SIGTERM, signal.SIGHUP)  # signals that are taken as Ctrl-C: what was done is put in order
THREADS = "skim-native"  # prefix of the names of threads that may be in a call when the process is to end


def interruptible(call: Callable[[], Result], stop: Callable[[], None] | None = None) -> Result:
    """What a call returns, or raises; Ctrl-C ends the wait for it at once.

    The call runs in a thread, and must let others run.

    Args:
        call: what may take long.
        stop: makes the call end early, and is called on Ctrl-C, which then waits for that. Without it the call goes on
            by itself, until the process ends.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # it is raised where the result is wanted
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True, name=THREADS)
    thread.start()
    try:
        wait([future])  # not thread.join(), which takes a thread for ended once it was interrupted (Python 3.11)
    except BaseException:
        if stop is not None:
            stop()
            wait([future])
        raise
    return future.result()


def left_running() -> bool:
    """Whether a call goes on that Ctrl-C has ended the wait for: then the process can't end in the usual way."""
    return any(thread.name.startswith(THREADS) for thread in threading.enumerate())


@contextmanager
def ends_at_once() -> Iterator[None]:
    """For calls that let no other thread run: Ctrl-C ends the process, since nothing in it could react."""
    taken = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, *ENDING):
            if callable(handler := signal.getsignal(number)):
                taken[number] = handler
                signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
