"""The levels that the codes of a row stand for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LevelKind", "RowLevels", "mirrored"]


class LevelKind(IntEnum):
    """How the levels of a row are given."""

    TABLE = 0
    AFFINE = 1


@dataclass(frozen=True)
class RowLevels:
    """The levels of N rows, in original row order.

    Attributes:
        bits: width of each row, uint8 `[N]`, 1..8.
        kind: `LevelKind` of each row, uint8 `[N]`.
        entries: codebook entries, int8 or float16 `[N, E]`, E at least 2^b for every table row, 2^(b + m - 1) for one
            with a memory m; the rest is ignored.
        scale: float16 `[N]`; ignored for table rows with float16 entries.
        offset: float16 `[N]`; ignored for table rows.
        memory: bits of a window beside those of its code, uint8 `[N]`; 0 where levels are those of the codes.
    """

    bits: npt.NDArray[np.uint8]
    kind: npt.NDArray[np.uint8]
    entries: npt.NDArray[Any]
    scale: npt.NDArray[np.float16]
    offset: npt.NDArray[np.float16]
    memory: npt.NDArray[np.uint8]

    @property
    def level_bits(self) -> npt.NDArray[np.uint8]:
        """Bits that a level of each row is looked up by, uint8 `[N]`: b + m."""
        return self.bits + self.memory

    def take(self, rows: npt.NDArray[np.int64]) -> RowLevels:
        """The levels of some of the rows, or of all in another order."""
        return RowLevels(*(getattr(self, field.name)[rows] for field in fields(self)))

    def values(self) -> npt.NDArray[np.float32]:
        """The levels of all rows, float32 `[N, 2^max(b + m)]`; a row uses its first 2^(b + m)."""
        count = 1 << int(self.level_bits.max())
        scale = self.scale.astype(np.float32)[:, None]
        values = np.zeros((len(self.bits), count), np.float32)
        table = self.kind == LevelKind.TABLE
        entries = self.entries[table, :count].astype(np.float32)
        values[table, : entries.shape[1]] = entries if self.entries.dtype == np.float16 else entries * scale[table]
        for width in np.unique(self.level_bits[self.memory > 0]).tolist():
            rows = np.flatnonzero((self.memory > 0) & (self.level_bits == width))
            values[rows, : 1 << width] = mirrored(values[rows, : 1 << (width - 1)])
        half = np.ldexp(np.float32(0.5), self.bits[~table].astype(np.int32))[:, None]
        steps = np.arange(count, dtype=np.float32) - half
        values[~table] = self.offset[~table].astype(np.float32)[:, None] + scale[~table] * steps
        return values

    def table(self, row: int) -> npt.NDArray[np.float32]:
        """The 2^(b + m) levels of one row, float32."""
        values: npt.NDArray[np.float32] = self.take(np.array([row])).values()[0]
        return values


def mirrored(lower: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Levels by window, `[.., 2 E]`, of those of the lower half of the windows, `[.., E]`.

    A window whose bits are all the opposite of another's has its level, negated (docs/format.md, "Windows").
    """
    return np.concatenate([lower, -lower[..., ::-1]], axis=-1)
