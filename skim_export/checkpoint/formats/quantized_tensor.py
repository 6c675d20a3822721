"""What the formats have in common: numbers on a grid, with a scale and a zero point for each block of the matrix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skim_export.checkpoint.tensors import StoredTensor
from skim_runtime.errors import UserError

from .numbers import Numbers

if TYPE_CHECKING:
    import torch

__all__ = ["QuantizedTensor"]

ROWS = 256  # whose scales are spread over all columns at once


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight that is made float when it is read: `W[n, k] = (code[n, k] - offset - zero[i, j]) * scale[i, j]`.

    Block i holds `block_rows` rows, block j `block_columns` columns, or those that `groups` says. Codes and zero points
    are small whole numbers, or floats of 8 bits and no zero points: only the product is rounded, to float32.

    Attributes:
        file: where the codes lie.
        shape: `[N, K]`.
        codes: `[N, K]`.
        scales: `[I, J]`.
        block_rows: rows that share a scale.
        block_columns: columns that share a scale.
        zeros: `[I, J]`; None where all are zero.
        offset: of all codes.
        groups: of each column its j, integers `[K]`; if all of them are 0, or -1, nobody has set them.
    """

    file: Path
    shape: tuple[int, int]
    codes: Numbers
    scales: Numbers
    block_rows: int
    block_columns: int
    zeros: Numbers | None = None
    offset: int = 0
    groups: StoredTensor | None = None

    def read(self, rows: slice) -> torch.Tensor:
        """Some rows, float32; beside them and the codes next to nothing is in memory.

        Raises:
            UserError: a column is of a group that is not there.
        """
        import torch

        start, stop, _ = rows.indices(self.shape[0])
        stop = max(start, stop)
        weight = self.codes.read(start, stop).to(torch.float32, copy=True).contiguous()
        scales = self._of_rows(self.scales, start, stop)
        zeros = torch.zeros_like(scales) if self.zeros is None else self._of_rows(self.zeros, start, stop)
        zeros += self.offset
        groups = self._groups()
        for first in range(0, stop - start, ROWS):
            run = slice(first, first + ROWS)
            weight[run] -= zeros[run].index_select(1, groups)
            weight[run] *= scales[run].index_select(1, groups)
        return weight

    def _of_rows(self, grid: Numbers, start: int, stop: int) -> torch.Tensor:
        """The values of some rows, float32 `[stop - start, J]`."""
        import torch

        first = start // self.block_rows
        found = grid.read(first, -(-stop // self.block_rows)).to(torch.float32)
        return found[torch.arange(start, stop) // self.block_rows - first]

    def _groups(self) -> torch.Tensor:
        """Of each column its j, int64 `[K]`."""
        import torch

        columns, stored = self.shape[1], self.groups
        count = -(-columns // self.block_columns)
        found = None if stored is None else stored.read_stored(slice(None)).to(torch.int64)
        if stored is None or found is None or (found == 0).all() or (found == -1).all():
            return torch.arange(columns) // self.block_columns
        for wrong in found[(found < 0) | (found >= count)][:1].tolist():
            raise UserError(f"tensor {stored.name} in {stored.file} names group {wrong}; there are 0 to {count - 1}")
        return found
