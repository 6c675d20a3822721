"""What the benchmarks take from the exporter: its methods and its statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from measuring import Job

from skim_export.calibration.statistics_store import StatisticsStore
from skim_export.checkpoint import Model
from skim_export.packed import CodebookType
from skim_export.packed.checkpoint import PackedCheckpoint
from skim_export.pipeline.budget import Budget
from skim_export.pipeline.quantize_linear import QuantizeOptions
from skim_export.pipeline.quantize_model import allocate, linear_tasks
from skim_export.quantize import Method, layer_objective, method_named
from skim_export.quantize.level_fits import FreeLevels
from skim_export.tuning import tune
from skim_export.work.resources import Resources
from skim_export.work.tasks import SerialExecutor, do_tasks
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

__all__ = ["CHANGES", "TUNING_STATISTICS", "TUNING_TEXT", "parse_method", "quantize_packed", "sensitivity"]

# In the work directory: the text to tune on, and the statistics of that text but for what is held out.
TUNING_TEXT = "tuning.npy"
TUNING_STATISTICS = "tuning"

# What may follow a method's name and a colon, separated by commas, beside "tune": the method with a part exchanged.
CHANGES: dict[str, dict[str, object]] = {
    "allocated": {"allocation": True},
    "even": {"allocation": False},
    "layer": {"objective": layer_objective},
    "scaled": {"column_scale": True},
    "unscaled": {"column_scale": False},
    "uncorrelated": {"correlated": False, "rows_correlated": False},
    "rowwise": {"rows_correlated": False},
    "windowless": {"levels": FreeLevels()},
}


def parse_method(name: str) -> tuple[Method, bool]:
    """A method of the exporter, such as `skim+` or `skim+:even,tune`, and whether it is tuned.

    Raises:
        UserError: there is none of that name.
    """
    base, *rest = name.split(":", 1)
    changes = rest[0].split(",") if rest else []
    for change in changes:
        if change not in CHANGES and change != "tune":
            raise UserError(f"--methods {name}: {change!r} must be one of {', '.join(CHANGES)}, tune")
    method = method_named(base)
    for change in changes:
        method = replace(method, **CHANGES.get(change, {}))  # type: ignore[arg-type]
    return method, "tune" in changes


def sensitivity(directory: Path, name: str) -> npt.NDArray[np.float32]:
    """The diagonal Fisher information of a linear layer from the statistics in a directory, float32 `[N, K]`."""
    return StatisticsStore(directory).fisher(name)


def quantize_packed(
    model: Model,
    job: Job,
    packed: PackedCheckpoint,
    method: str,
    bits: float,
    codebook: CodebookType,
    progress: Progress,
) -> None:
    """Quantize the linear layers by the steps of `skim_export.pipeline.export.export`.

    Args:
        model: the model.
        job: its work directory holds calibration statistics and text to tune on, as far as methods need them.
        packed: where the packed layers go.
        method: see `parse_method`.
        bits: average width of the codes.
        codebook: type of codebook entries.
        progress: told of every step.
    """
    parts, tuned = parse_method(method)
    options = QuantizeOptions(parts, codebook=codebook)
    store = StatisticsStore(job.work / TUNING_STATISTICS if tuned else job.work)
    executor, curves = SerialExecutor(Resources(job.threads)), packed.directory / "curves"
    curves.mkdir()
    widths = allocate(model, store, options, Budget(bits), curves=curves, executor=executor, progress=progress)
    tasks = linear_tasks(model, store, widths, packed, options, executor.resources)
    do_tasks("quantizing", tasks, executor, progress)
    if tuned:
        text, state = np.load(job.work / TUNING_TEXT), packed.directory / "state"
        tune(model, packed, text, state, resources=executor.resources, progress=progress)
