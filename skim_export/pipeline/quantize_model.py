"""The steps from a checkpoint and its calibration statistics to packed linears."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skim_export.calibration.statistics_store import StatisticsStore
from skim_export.checkpoint import Model
from skim_export.packed.checkpoint import PackedCheckpoint
from skim_export.pipeline.budget import Budget, widths_around
from skim_export.pipeline.free_rows import FreeRows
from skim_export.pipeline.quantize_linear import (
    CheckpointLinear,
    QuantizeOptions,
    StoredStatistics,
    working_bytes,
    write_quantized,
    write_width_errors,
)
from skim_export.quantize import ONE_WIDTH, LinearCurves, allocate_bits
from skim_export.work.resources import Resources
from skim_export.work.tasks import Executor, Task, do_tasks
from skim_runtime.progress import Progress

__all__ = ["allocate", "embedding_tasks", "linear_tasks"]


def allocate(
    model: Model,
    store: StatisticsStore,
    options: QuantizeOptions,
    budget: Budget,
    *,
    curves: Path,
    executor: Executor,
    progress: Progress,
) -> dict[str, npt.NDArray[np.uint8]]:
    """The width of every row of every layer that the budget is for, uint8 `[N]` by name.

    Methods with allocation spend the budget greedily over all rows of the model that were given no width, the others
    give those of every layer the same average.

    Args:
        model: the model.
        store: calibration statistics, if the method needs them.
        options: how to quantize.
        budget: what the layers may take.
        curves: directory for error curves; those that are there are of the same statistics, options and budget.
        executor: finds the error curves.
        progress: sees one stage, "error curves", if the method allocates.

    Raises:
        UserError: the budget is too small.
    """
    free = FreeRows.of(options.budgeted(model.architecture), options, budget)
    method = options.method
    if not method.allocation:
        return free.filled(free.even())
    tasks, choices = [], []
    for linear in free.searched:
        widths, costs = budget.choices(widths_around(free.average), linear.in_features, options.codebook, method)
        path = curves / f"{linear.name}.npy"
        data = CheckpointLinear(model.checkpoint, linear, StoredStatistics(store, linear.name), method)
        work = partial(write_width_errors, path, data, widths, executor.resources)
        tasks.append(Task(linear.name, work, (path,), working_bytes(linear, executor.resources, method)))
        choices.append((path, free.mask(linear), np.array(widths, np.uint8), costs))
    do_tasks("error curves", tasks, executor, progress)
    found = [LinearCurves(np.load(path)[rows], widths, costs) for path, rows, widths, costs in choices]
    return free.filled(allocate_bits(found, free.bits))


def linear_tasks(
    model: Model,
    store: StatisticsStore,
    bits: dict[str, npt.NDArray[np.uint8]],
    output: PackedCheckpoint,
    options: QuantizeOptions,
    resources: Resources,
) -> list[Task]:
    """Quantize the layers that have their widths into a packed checkpoint.

    Layers that are complete there are taken to be of the same statistics, widths and options.
    """
    tasks = []
    for linear in options.budgeted(model.architecture):
        data = CheckpointLinear(model.checkpoint, linear, StoredStatistics(store, linear.name), options.method)
        tasks.append(_task(data, bits[linear.name], output, options, resources))
    return tasks


def embedding_tasks(
    model: Model,
    output: PackedCheckpoint,
    options: QuantizeOptions,
    resources: Resources,
) -> list[Task]:
    """Quantize embedding and head at one width for all rows, unless they took part in the allocation."""
    return [
        _task(CheckpointLinear(model.checkpoint, linear, None, ONE_WIDTH), bits, output, options, resources)
        for linear, bits in options.apart(model.architecture).items()
    ]


def _task(
    data: CheckpointLinear,
    bits: npt.NDArray[np.uint8],
    output: PackedCheckpoint,
    options: QuantizeOptions,
    resources: Resources,
) -> Task:
    return Task(
        data.name,
        partial(write_quantized, data, bits, output, options.codebook, resources),
        (output.path(data.name),),
        working_bytes(data.linear, resources, data.method),
    )
