"""Numbers of a matrix `[N, K]` as formats store them: as they are, on their side, or several in a word of 32 bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from skim_export.checkpoint.tensors import StoredTensor

if TYPE_CHECKING:
    import torch

__all__ = ["Numbers", "PackedColumns", "PackedRows", "Plain", "unpack"]

WORD = 32  # bits


class Numbers(Protocol):
    """A matrix `[N, K]` of numbers, of which some rows are read."""

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop - 1`, `[stop - start, K]`, in whatever type they have."""


@dataclass(frozen=True)
class Plain:
    """A matrix that is stored as it is, or as `[K, N]`; a vector is a column, a number a matrix of one."""

    stored: StoredTensor
    transposed: bool = False

    def read(self, start: int, stop: int) -> torch.Tensor:
        """See `Numbers`."""
        found = _rows(self.stored, start, stop, self.transposed)
        return found if found.dim() == 2 else found.reshape(-1, 1)


@dataclass(frozen=True)
class PackedColumns:
    """Numbers of `bits` bits whose rows are packed, int32 `[N, ceil(K * bits / 32)]`, or that on its side."""

    stored: StoredTensor
    bits: int
    columns: int
    transposed: bool = False

    def read(self, start: int, stop: int) -> torch.Tensor:
        """See `Numbers`."""
        return unpack(_rows(self.stored, start, stop, self.transposed), self.bits)[:, : self.columns]


@dataclass(frozen=True)
class PackedRows:
    """Numbers of `bits` bits whose columns are packed, int32 `[ceil(N * bits / 32), K]`, or that on its side.

    Attributes:
        order: for formats that shuffle the numbers of a word: of each of its rows, the place in the word.
    """

    stored: StoredTensor
    bits: int
    transposed: bool = False
    order: Sequence[int] | None = None

    def read(self, start: int, stop: int) -> torch.Tensor:
        """See `Numbers`."""
        words, numbers = _period(self.bits)
        first = start // numbers
        run = _rows(self.stored, first * words, -(-stop // numbers) * words, self.transposed)
        found = unpack(run.T, self.bits)
        if self.order is not None:
            found = found.reshape(len(found), -1, numbers)[..., list(self.order)].flatten(1)
        return found[:, start - first * numbers : stop - first * numbers].T


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned numbers of 1 to 8 bits from rows of words, which are streams of bits beginning with the lowest.

    Args:
        words: int32 `[R, W]`.
        bits: of a number; where they don't divide 32, some numbers begin in one word and end in the next.

    Returns:
        uint8 `[R, W * 32 / bits]`, rounded down.
    """
    import torch

    per_period, numbers = _period(bits)
    rows, width = words.shape
    periods = -(-width // per_period)
    padded = torch.nn.functional.pad(words.contiguous(), (0, periods * per_period - width)).reshape(
        rows, periods, per_period
    )
    found = torch.empty(rows, periods, numbers, dtype=torch.uint8)
    for number in range(numbers):
        word, offset = divmod(number * bits, WORD)
        low = min(bits, WORD - offset)  # bits in this word
        values = (padded[..., word] >> offset) & ((1 << low) - 1)
        if low < bits:
            values |= (padded[..., word + 1] & ((1 << (bits - low)) - 1)) << low
        found[..., number] = values
    return found.flatten(1)[:, : width * WORD // bits]


def _period(bits: int) -> tuple[int, int]:
    """After how many words, and numbers, a number begins with a word again."""
    common = math.gcd(bits, WORD)
    return bits // common, WORD // common


def _rows(stored: StoredTensor, start: int, stop: int, transposed: bool) -> torch.Tensor:
    run = slice(start, stop)
    return stored.read_stored(slice(None), run).T if transposed else stored.read_stored(run)
