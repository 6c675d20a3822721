"""One quantized linear layer whose levels are trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from skim_export.packed import CodebookType, LevelKind, PackedLinear
from skim_export.quantize import round_levels

from .adam import Adam

__all__ = ["TrainedLinear"]


class TrainedLinear:
    """The free levels of a packed linear as parameters; its codes, column scale and affine rows stay as they are.

    Steps are taken in units of a row's spread, so that one learning rate suits all layers. The windows, by far the most
    of it, are in a file, and in memory only while they are needed.

    Args:
        packed: the layer.
        windows: a file to be written.
    """

    def __init__(self, packed: PackedLinear, windows: Path) -> None:
        self._stored = packed.unpack()[1]
        self._file = windows
        with windows.open("wb") as file:
            np.save(file, packed.windows())
        self._scale = torch.ones(packed.in_features)
        if packed.column_scale.size:
            self._scale = torch.from_numpy(packed.column_scale.astype(np.float32))
        self.levels = torch.from_numpy(self._stored.values())
        self._spread = self.weight().div_(self._scale).std(dim=1, keepdim=True, correction=0)
        counts = 1 << self._stored.level_bits.astype(np.int64)
        free = (np.arange(self.levels.shape[1]) < counts[:, None]) & (self._stored.kind == LevelKind.TABLE)[:, None]
        self._free = torch.from_numpy(free)
        self._is_window = torch.from_numpy(free & (self._stored.memory > 0)[:, None])
        self._counts = torch.from_numpy(counts[:, None])
        self.optimizer = Adam(self.levels.shape)

    def weight(self) -> torch.Tensor:
        """The dequantized weight, float32 `[N, K]`."""
        return torch.gather(self.levels, 1, self._windows().long()).mul_(self._scale)

    def level_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """From the gradient in the weight `[N, K]`, which is overwritten, to that in the levels `[N, levels]`."""
        found = self._by_level(gradient, self._windows())
        return found - self._of_opposite(found)

    def _windows(self) -> torch.Tensor:
        return torch.from_numpy(np.load(self._file))

    def _by_level(self, values: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        return torch.zeros(self.levels.shape).scatter_add_(1, windows.long(), values.mul_(self._scale))

    def _of_opposite(self, by_level: torch.Tensor) -> torch.Tensor:
        """What is said of each level, said of its negative instead; 0 where levels have none."""
        opposite = (self._counts - 1 - torch.arange(by_level.shape[1])).clamp_(min=0)
        return torch.where(self._is_window, by_level.gather(1, opposite), 0.0)

    def step(self, gradient: torch.Tensor, rate: float) -> None:
        """Move the levels against their gradient `[N, levels]` by about `rate` times the spread of each row."""
        self.levels -= torch.where(self._free, rate * self._spread * self.optimizer.direction(gradient), 0.0)

    def pack(self, original: PackedLinear) -> PackedLinear:
        """The layer, as it was at first, with its levels rounded to what is stored."""
        table = self._stored.kind == LevelKind.TABLE
        if not table.any():
            return original
        windows = self._windows()
        mass = self._by_level(torch.ones(windows.shape), windows)
        mass += self._of_opposite(mass)
        codebook: CodebookType = "int8" if self._stored.entries.dtype == np.int8 else "float16"
        stored_bits = self._stored.level_bits - (self._stored.memory > 0).astype(np.uint8)
        rounded = round_levels(self.levels.numpy() * self._free.numpy(), mass.numpy(), stored_bits, codebook)
        levels = replace(
            self._stored,
            entries=rounded.entries[:, : self._stored.entries.shape[1]],
            scale=np.where(table, rounded.scale, self._stored.scale),
        )
        column_scale = original.column_scale if original.column_scale.size else None
        bias = original.bias if original.bias.size else None
        return PackedLinear.pack(windows.numpy() >> self._stored.memory[:, None], levels, column_scale, bias)
