"""Memory for tensors that native code reads by whole vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ALIGNMENT", "aligned_copy", "aligned_zeros"]

ALIGNMENT = 64  # bytes: the longest vectors of today's CPUs, and what TVM expects of its tensors


def aligned_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Zeros from an aligned address on, followed by another `ALIGNMENT` bytes that may be read."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 2 * ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def aligned_copy(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy in such memory."""
    copy = aligned_zeros(array.shape, array.dtype)
    copy[...] = array
    return copy
