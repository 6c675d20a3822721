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
        self.optimizer = Adam(self.levels.shape)

    def weight(self) -> torch.Tensor:
        """The dequantized weight, float32 `[N, K]`."""
        return torch.gather(self.levels, 1, self._windows.long()).mul_(self._scale)

    def level_gradient(self, gradient: torch.Tensor, rows: slice) -> torch.Tensor:
        """From the gradient in some rows of the weight `[R, K]` to that in their levels `[R, levels]`."""
        windows = self._windows[rows].long()
        return torch.zeros(len(windows), self.levels.shape[1]).scatter_add_(1, windows, gradient * self._scale)

    def step(self, gradient: torch.Tensor, rate: float) -> None:
        """Move the levels against their gradient `[N, levels]` by about `rate` times the spread of each row."""
        self.levels -= torch.where(self._free, rate * self._spread * self.optimizer.direction(gradient), 0.0)

    def pack(self) -> PackedLinear:
        """The layer with its levels rounded to what is stored."""
        windows = self._windows.numpy()
        table = self._stored.kind == LevelKind.TABLE
        if not table.any():
            return self._packed
        mass = self.level_gradient(torch.ones(windows.shape), slice(None)).numpy()
        codebook: CodebookType = "int8" if self._stored.entries.dtype == np.int8 else "float16"
        rounded = round_levels(self.levels.numpy() * self._free.numpy(), mass, self._stored.level_bits, codebook)
        levels = replace(
            self._stored,
            entries=rounded.entries[:, : self._stored.entries.shape[1]],
            scale=np.where(table, rounded.scale, self._stored.scale),
        )
        column_scale = self._packed.column_scale if self._packed.column_scale.size else None
        bias = self._packed.bias if self._packed.bias.size else None
        return PackedLinear.pack(windows >> self._stored.memory[:, None], levels, column_scale, bias)
