"""What the benchmarks take from the exporter: its methods and its statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from skim_export.budget import Budget
from skim_export.checkpoint import Architecture, Checkpoint
from skim_export.packed_checkpoint import PackedCheckpoint
from skim_export.quantize import CodebookType
from skim_export.quantize_model import QuantizeOptions, allocate, method_named, quantize_linears
from skim_export.statistics_store import StatisticsStore
from skim_runtime.progress import Progress

__all__ = ["check_method", "quantize_packed", "sensitivity"]


def check_method(method: str) -> None:
    """Refuse a method that the exporter does not know.

    Raises:
        UserError: it does not.
    """
    method_named(method)


def sensitivity(directory: Path, name: str) -> npt.NDArray[np.float32]:
    """The diagonal Fisher information of a linear layer from the statistics in a directory, float32 `[N, K]`."""
    return StatisticsStore(directory).fisher(name)


def quantize_packed(
    checkpoint: Checkpoint,
    architecture: Architecture,
    store: StatisticsStore,
    packed: PackedCheckpoint,
    method: str,
    bits: float,
    codebook: CodebookType,
    *,
    threads: int,
    progress: Progress,
) -> None:
    """Quantize the linear layers by the steps of `skim_export.pipeline.export`.

    Args:
        checkpoint: the model.
        architecture: of the model.
        store: calibration statistics; empty for methods without.
        packed: where the packed layers go.
        method: the method's name on the command line.
        bits: average width of the codes.
        codebook: type of codebook entries.
        threads: threads to use.
        progress: told of every step.
    """
    options = QuantizeOptions(method_named(method), codebook=codebook)
    widths = allocate(checkpoint, architecture, store, options, Budget(bits), threads=threads, progress=progress)
    quantize_linears(checkpoint, architecture, store, widths, packed, options, threads=threads, progress=progress)
