"""Threads that cannot change results: the work is cut the same way however many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from skim_runtime.interruptible import THREADS

__all__ = ["in_order", "workers"]

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def workers(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of `threads` workers, each of which runs torch on one thread.

    A sum split over torch's own threads depends on their number in its last bits; one thread an operation does not.
    On an error or Ctrl-C the work that has not begun is dropped, and Ctrl-C does not wait for what has begun. The
    thread count of torch is restored at the end.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads, THREADS, initializer=torch.set_num_threads, initargs=(1,))
    interrupted = False
    try:
        yield pool
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        pool.shutdown(wait=not interrupted, cancel_futures=True)
        torch.set_num_threads(before)


def in_order(pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Run `function` on every item; the results come in the order of the items."""
    futures = [pool.submit(function, item) for item in items]
    return [future.result() for future in futures]
