"""The key/value cache of a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from skim_runtime.aligned import aligned_zeros

__all__ = ["KeyValueCache"]


class KeyValueCache:
    """Keys and values of the tokens so far, one buffer `[1, KV heads, capacity, head size]` for each name.

    GroupQueryAttention writes new tokens into the buffer that it reads the past from, if its past and present are the
    same memory, so nothing is copied from token to token. When a buffer is full, all grow.

    Args:
        kv_heads: KV heads of each buffer.
        head_size: channels of a head.
        dtype: element type of the graph's cache.
    """

    def __init__(self, kv_heads: Sequence[int], head_size: int, dtype: npt.DTypeLike) -> None:
        self._kv_heads = kv_heads
        self._head_size = head_size
        self._dtype = dtype
        self.clear(0)

    def clear(self, capacity: int) -> None:
        """Forget everything and make room for `capacity` tokens."""
        self.length = 0
        self.capacity = capacity
        self.buffers = [self._buffer(heads) for heads in self._kv_heads]

    def reserve(self, tokens: int) -> bool:
        """Make room for `tokens` more; true if the buffers moved."""
        needed = self.length + tokens
        if needed <= self.capacity:
            return False
        self.capacity = max(needed, 2 * self.capacity)
        for i, old in enumerate(self.buffers):
            new = self._buffer(old.shape[1])
            new[:, :, : self.length] = old[:, :, : self.length]
            self.buffers[i] = new
        return True

    def _buffer(self, heads: int) -> npt.NDArray[Any]:
        return aligned_zeros((1, heads, self.capacity, self._head_size), self._dtype)
