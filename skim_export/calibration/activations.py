"""Activations and gradients between decoder blocks, on disk: those of a calibration text may not fit into memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from skim_export.work.sealed import is_sealed, remove_sealed, write_sealed_array

if TYPE_CHECKING:
    import torch

__all__ = ["Activations"]


class Activations:
    """What goes into every block, and the gradient of the loss there, float32 `[S, T, hidden]`.

    What was written is found again by another process; block number B, the last number, stands for the output.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def has_input(self, block: int) -> bool:
        """Whether the input of a block is there, complete."""
        return is_sealed(self._path("input", block))

    def has_gradient(self, block: int) -> bool:
        """Whether the gradient in the input of a block is there, complete."""
        return is_sealed(self._path("gradient", block))

    def write_input(self, block: int, hidden: torch.Tensor) -> None:
        """Keep the input of a block."""
        self._write(self._path("input", block), hidden)

    def write_gradient(self, block: int, gradient: torch.Tensor) -> None:
        """Keep the gradient in the input of a block."""
        self._write(self._path("gradient", block), gradient)

    def input(self, block: int) -> torch.Tensor:
        """The input of a block."""
        return self._read(self._path("input", block))

    def gradient(self, block: int) -> torch.Tensor:
        """The gradient in the input of a block."""
        return self._read(self._path("gradient", block))

    def remove_input(self, block: int) -> None:
        """Forget the input of a block."""
        remove_sealed(self._path("input", block))

    def remove_gradient(self, block: int) -> None:
        """Forget the gradient in the input of a block."""
        remove_sealed(self._path("gradient", block))

    def paths(self, blocks: int) -> tuple[Path, ...]:
        """The files of the inputs of so many blocks, the output, and the gradients there."""
        return tuple(self._path(kind, block) for kind in ("input", "gradient") for block in range(blocks + 1))

    def _path(self, kind: str, block: int) -> Path:
        return self._directory / f"{kind}-{block}.npy"

    @staticmethod
    def _write(path: Path, tensor: torch.Tensor) -> None:
        write_sealed_array(path, tensor.detach().numpy())

    @staticmethod
    def _read(path: Path) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.load(path))
