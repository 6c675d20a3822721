"""The steps from a checkpoint and its calibration statistics to packed linears."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skim_export.calibration.statistics_store import StatisticsStore
from skim_export.checkpoint import Linear, Model
from skim_export.packed.checkpoint import PackedCheckpoint
from skim_export.pipeline.budget import Budget, widths_around
from skim_export.pipeline.quantize_linear import (
    CheckpointLinear,
    QuantizeOptions,
    StoredStatistics,
    working_bytes,
    write_quantized,
    write_width_errors,
)
from skim_export.quantize import ONE_WIDTH, LinearCurves, allocate_bits, even_bits
from skim_export.work.resources import Resources
from skim_export.work.tasks import Executor, Task, do_tasks
from skim_runtime.errors import UserError
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

    Methods with allocation spend the budget greedily over all rows of the model, the others give every layer the same
    average.

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
    linears = options.budgeted(model.architecture)
    method = options.method
    average = _even_average(linears, options, budget)
    if not method.allocation:
        return {linear.name: even_bits(linear.out_features, average) for linear in linears}
    tasks, choices = [], []
    for linear in linears:
        widths, costs = budget.choices(widths_around(average), linear.in_features, options.codebook, method)
        path = curves / f"{linear.name}.npy"
        data = CheckpointLinear(model.checkpoint, linear, StoredStatistics(store, linear.name), method)
        work = partial(write_width_errors, path, data, widths, executor.resources)
        tasks.append(Task(linear.name, work, (path,), working_bytes(linear, executor.resources, method)))
        choices.append((path, np.array(widths, np.uint8), costs))
    do_tasks("error curves", tasks, executor, progress)
    found = [LinearCurves(np.load(path), widths, costs) for path, widths, costs in choices]
    bits = allocate_bits(found, budget.total(_shapes(linears), column_scale=method.column_scale))
    return {linear.name: row_bits for linear, row_bits in zip(linears, bits, strict=True)}


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
    if options.head_bits is None:
        return []
    tasks = []
    for linear in model.architecture.vocabulary_linears:
        data = CheckpointLinear(model.checkpoint, linear, None, ONE_WIDTH)
        bits = np.full(linear.out_features, options.head_bits, np.uint8)
        tasks.append(_task(data, bits, output, options, resources))
    return tasks


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


def _shapes(linears: list[Linear]) -> list[tuple[int, int]]:
    return [(linear.out_features, linear.in_features) for linear in linears]


def _even_average(linears: list[Linear], options: QuantizeOptions, budget: Budget) -> float:
    """The widest average, in steps of 1/64 bit, that the budget allows if it is the same in every layer."""
    if not budget.stored:
        return budget.bits
    costs = [budget.row_costs(range(1, 9), linear.in_features, options.codebook, options.method) for linear in linears]

    def cost(average: float) -> int:
        widths = [even_bits(linear.out_features, average) for linear in linears]
        return sum(int(row_costs[bits - 1].sum()) for row_costs, bits in zip(costs, widths, strict=True))

    total = budget.total(_shapes(linears), column_scale=options.method.column_scale)
    affordable = [steps / 64 for steps in range(64, 8 * 64 + 1) if cost(steps / 64) <= total]
    if not affordable:
        raise UserError(f"{budget.bits:.3g} effective bits per weight are too few: codes of 1 bit take more")
    return max(affordable)
