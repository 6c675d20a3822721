"""What the C library keeps of freed memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

__all__ = ["return_freed_memory"]


def return_freed_memory() -> None:
    """Give freed memory back to the system.

    glibc keeps freed blocks of less than 32 MB, of every thread apart. Activations are of that size, and over some tens
    of sequences what is kept comes to gigabytes.
    """
    _trim()(0)


@cache
def _trim() -> Callable[[int], object]:
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except AttributeError:  # another C library
        return lambda kept: None
    return trim
