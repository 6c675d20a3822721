"""One quantized linear layer whose levels are trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from skim_export.packed import CodebookType, LevelKind, PackedLinear
from skim_export.quantize import round_levels

from .adam import Adam

__all__ = ["TrainedLinear"]


class TrainedLinear:
    """The free levels of a packed linear as parameters; its codes, column scale and affine rows stay as they are.

    Steps are taken in units of a row's spread, so that one learning rate suits all layers.

    Args:
        packed: the layer.
    """

    def __init__(self, packed: PackedLinear) -> None:
        self._stored = packed.unpack()[1]
        self._packed = packed
        self._windows = torch.from_numpy(packed.windows())
        self._scale = torch.ones(packed.in_features)
        if packed.column_scale.size:
            self._scale = torch.from_numpy(packed.column_scale.astype(np.float32))
        self.levels = torch.from_numpy(self._stored.values())
        self._spread = self.weight().div_(self._scale).std(dim=1, keepdim=True, correction=0)
        counts = 1 << self._stored.level_bits.astype(np.int64)
        free = (np.arange(self.levels.shape[1]) < counts[:, None]) & (self._stored.kind == LevelKind.TABLE)[:, None]
        self._free = torch.from_numpy(free)
        self._is_window = torch.from_numpy(free & (self._stored.memory > 0)[:, None])
        opposite = np.clip(counts[:, None] - 1 - np.arange(self.levels.shape[1]), 0, None)
        self._opposite = torch.from_numpy(opposite)  # of each window, that whose level is the negative of its
        self.optimizer = Adam(self.levels.shape)

    def weight(self) -> torch.Tensor:
        """The dequantized weight, float32 `[N, K]`."""
        return torch.gather(self.levels, 1, self._windows.long()).mul_(self._scale)

    def level_gradient(self, gradient: torch.Tensor, rows: slice) -> torch.Tensor:
        """From the gradient in some rows of the weight `[R, K]` to that in their levels `[R, levels]`."""
        found = self._by_level(gradient, rows)
        return found - self._of_opposite(found, rows)

    def _by_level(self, values: torch.Tensor, rows: slice) -> torch.Tensor:
        windows = self._windows[rows].long()
        return torch.zeros(len(windows), self.levels.shape[1]).scatter_add_(1, windows, values * self._scale)

    def _of_opposite(self, by_level: torch.Tensor, rows: slice) -> torch.Tensor:
        """What is said of each level of some rows, said of its negative instead; 0 where levels have none."""
        return torch.where(self._is_window[rows], by_level.gather(1, self._opposite[rows]), 0.0)

    def step(self, gradient: torch.Tensor, rate: float) -> None:
        """Move the levels against their gradient `[N, levels]` by about `rate` times the spread of each row."""
        self.levels -= torch.where(self._free, rate * self._spread * self.optimizer.direction(gradient), 0.0)

    def pack(self) -> PackedLinear:
        """The layer with its levels rounded to what is stored."""
        windows = self._windows.numpy()
        table = self._stored.kind == LevelKind.TABLE
        if not table.any():
            return self._packed
        mass = self._by_level(torch.ones(windows.shape), slice(None))
        mass += self._of_opposite(mass, slice(None))
        codebook: CodebookType = "int8" if self._stored.entries.dtype == np.int8 else "float16"
        stored_bits = self._stored.level_bits - (self._stored.memory > 0).astype(np.uint8)
        rounded = round_levels(self.levels.numpy() * self._free.numpy(), mass.numpy(), stored_bits, codebook)
        levels = replace(
            self._stored,
            entries=rounded.entries[:, : self._stored.entries.shape[1]],
            scale=np.where(table, rounded.scale, self._stored.scale),
        )
        column_scale = self._packed.column_scale if self._packed.column_scale.size else None
        bias = self._packed.bias if self._packed.bias.size else None
        return PackedLinear.pack(windows >> self._stored.memory[:, None], levels, column_scale, bias)
