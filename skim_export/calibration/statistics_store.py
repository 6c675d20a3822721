"""Calibration statistics on disk between the pass that gathers them and the pass that quantizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from skim_export.calibration import LinearStatistics
from skim_export.work.sealed import is_sealed, write_sealed

__all__ = ["StatisticsStore"]


class StatisticsStore:
    """The statistics of each linear layer.

    Half the bytes of float32 will do: bfloat16 for the Fisher information, whose range matters and last digits do not,
    float16 for the correlations.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, name: str, statistics: LinearStatistics) -> None:
        """Keep the statistics of a linear layer."""
        tensors = {
            "fisher": torch.from_numpy(statistics.fisher).to(torch.bfloat16),
            "input_square": torch.from_numpy(statistics.input_square),
            "correlation": torch.from_numpy(statistics.correlation).to(torch.float16),
        }
        if statistics.output_correlation is not None:
            tensors["output_correlation"] = torch.from_numpy(statistics.output_correlation).to(torch.float16)
        if statistics.expert_tokens is not None:
            tensors["expert_tokens"] = torch.from_numpy(statistics.expert_tokens)
        write_sealed(self.path(name), lambda path: save_file(tensors, path))

    def is_complete(self, name: str) -> bool:
        """Whether the statistics of a linear layer are there, as they were stored; they are read to find out."""
        return is_sealed(self.path(name))

    def fisher(self, name: str, rows: slice = slice(None)) -> npt.NDArray[np.float32]:
        """Fisher information of the weights, float32 `[N, K]`, or of some rows."""
        return self._read(name, "fisher", rows)

    def input_square(self, name: str) -> npt.NDArray[np.float32]:
        """Mean squares of the inputs, float32 `[K]`."""
        return self._read(name, "input_square")

    def correlation(self, name: str) -> npt.NDArray[np.float32]:
        """Correlation of the inputs, float32 `[K, K]`."""
        return self._read(name, "correlation")

    def output_correlation(self, name: str, rows: slice = slice(None)) -> npt.NDArray[np.float32] | None:
        """Correlation of the outputs' gradients in blocks of rows, float32 `[N, ROW_GROUP]`, or of some rows."""
        with safe_open(self.path(name), framework="pt") as file:
            known = "output_correlation" in file.keys()  # noqa: SIM118, it is no dictionary
        return self._read(name, "output_correlation", rows) if known else None

    def expert_tokens(self, name: str) -> npt.NDArray[np.int64]:
        """The tokens that each expert of a layer of experts was given, int64 `[experts]`."""
        with safe_open(self.path(name), framework="numpy") as file:
            result: npt.NDArray[np.int64] = file.get_tensor("expert_tokens")
        return result

    def path(self, name: str) -> Path:
        """The file of a linear layer."""
        return self.directory / f"{name}.statistics"

    def _read(self, name: str, tensor: str, rows: slice = slice(None)) -> npt.NDArray[np.float32]:
        with safe_open(self.path(name), framework="pt") as file:
            result: npt.NDArray[np.float32] = file.get_slice(tensor)[rows].to(torch.float32, copy=True).numpy()
        return result
