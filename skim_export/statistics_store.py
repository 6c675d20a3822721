"""Calibration statistics on disk between the pass that gathers them and the pass that quantizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

__all__ = ["StatisticsStore"]


class StatisticsStore:
    """The diagonal Fisher information of each linear, in bfloat16: its range matters, its last digits do not."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.fisher"

    def write(self, name: str, fisher: npt.NDArray[np.float32]) -> None:
        """Keep the Fisher information `[N, K]` of a linear."""
        save_file({"fisher": torch.from_numpy(fisher).to(torch.bfloat16)}, self._path(name))

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """Return what was kept, float32 `[N, K]`."""
        fisher: npt.NDArray[np.float32] = load_file(self._path(name))["fisher"].to(torch.float32).numpy()
        return fisher
