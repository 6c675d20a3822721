"""The steps from a checkpoint and its calibration tokens to packed linears."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import numpy.typing as npt

from skim_export.budget import Budget, widths_around
from skim_export.calibration import Activations, calibrate
from skim_export.checkpoint import Architecture, Checkpoint, Linear, linear_bias, linear_weight
from skim_export.packed import PackedLinear
from skim_export.packed_checkpoint import PackedCheckpoint
from skim_export.quantize import (
    DEFAULT_METHOD,
    METHODS,
    CodebookType,
    Columns,
    Coupling,
    LayerCurves,
    Method,
    QuantizedLinear,
    allocate_bits,
    damped,
    even_bits,
    fit_column_scale,
    power_of_two_scale,
    quantize_rows,
    quantize_uniform,
    width_errors,
)
from skim_export.resources import ROW_GROUP, Resources
from skim_export.sealed import is_sealed, write_sealed
from skim_export.statistics_store import StatisticsStore
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

if TYPE_CHECKING:
    import torch

__all__ = [
    "QuantizeOptions",
    "allocate",
    "gather_statistics",
    "layer_errors",
    "quantize_embedding",
    "quantize_embeddings",
    "quantize_layer",
    "quantize_linears",
]


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize.

    Attributes:
        method: what to quantize with, one of `METHODS` or one of other parts.
        head_bits: width of embedding and output head; None if their rows take part in the allocation.
        codebook: type of codebook entries, "int8" or "float16".
    """

    method: Method = METHODS[DEFAULT_METHOD]
    head_bits: int | None = 8
    codebook: CodebookType = "int8"

    def __post_init__(self) -> None:
        if self.head_bits not in (None, *range(1, 9)):
            raise UserError(f"--head-bits {self.head_bits}: must be a whole number from 1 to 8, or auto")
        if self.codebook not in get_args(CodebookType):
            raise UserError(f"--codebook {self.codebook}: must be one of {', '.join(get_args(CodebookType))}")

    def budgeted(self, architecture: Architecture) -> list[Linear]:
        """The linear layers that the budget is for."""
        return architecture.linears + (architecture.vocabulary_linears if self.head_bits is None else [])


def gather_statistics(
    checkpoint: Checkpoint,
    architecture: Architecture,
    tokens: npt.NDArray[np.int64],
    store: StatisticsStore,
    *,
    vocabulary: bool = False,
    threads: int,
    device: torch.device | None = None,
    progress: Progress,
) -> None:
    """Run the calibration tokens `[S, T]` through the model and keep the statistics of every linear layer.

    With `vocabulary`, also of embedding and head. What was kept of the same tokens before is not computed again.
    """
    wanted = architecture.linears + (architecture.vocabulary_linears if vocabulary else [])
    kept = {linear.name for linear in wanted if store.is_complete(linear.name)}
    if len(kept) == len(wanted):
        return
    directory = store.directory / "activations"
    for linear, statistics in calibrate(
        checkpoint,
        architecture,
        tokens,
        Activations(directory),
        vocabulary=vocabulary,
        is_kept=lambda linear: linear.name in kept,
        threads=threads,
        device=device,
        progress=progress,
    ):
        store.write(linear.name, statistics)
    shutil.rmtree(directory)


def allocate(
    checkpoint: Checkpoint,
    architecture: Architecture,
    store: StatisticsStore,
    options: QuantizeOptions,
    budget: Budget,
    *,
    curves: Path,
    resources: Resources,
    progress: Progress,
) -> dict[str, npt.NDArray[np.uint8]]:
    """The width of every row of every layer that the budget is for, uint8 `[N]` by name.

    Methods with allocation spend the budget greedily over all rows of the model, the others give every layer the same
    average.

    Args:
        checkpoint: the model.
        architecture: of the model.
        store: calibration statistics, if the method needs them.
        options: how to quantize.
        budget: what the layers may take.
        curves: directory for error curves; those that are there are of the same statistics, options and budget.
        resources: what to use.
        progress: sees one stage, "error curves", if the method allocates.

    Raises:
        UserError: the budget is too small.
    """
    linears = options.budgeted(architecture)
    average = _even_average(linears, options, budget)
    if not options.method.allocation:
        return {linear.name: even_bits(linear.out_features, average) for linear in linears}
    layers = []
    progress.start("error curves", len(linears))
    for linear in linears:
        widths, costs = budget.choices(widths_around(average), linear.in_features, options.codebook)
        path = curves / f"{linear.name}.npy"
        if not is_sealed(path):
            errors = layer_errors(checkpoint, linear, store, widths, options.method, resources)
            write_sealed(path, partial(_save_array, errors))
        layers.append(LayerCurves(np.load(path), np.array(widths, np.uint8), costs))
        progress.step(linear.name)
    progress.finish()
    bits = allocate_bits(layers, budget.total(_shapes(linears), column_scale=options.method.column_scale))
    return {linear.name: row_bits for linear, row_bits in zip(linears, bits, strict=True)}


def layer_errors(
    checkpoint: Checkpoint,
    linear: Linear,
    store: StatisticsStore,
    widths: Sequence[int],
    method: Method,
    resources: Resources,
) -> npt.NDArray[np.float64]:
    """Error of every row of a layer at every width, float64 `[N, widths]`, see `width_errors`."""
    chunks = resources.chunks(linear.out_features, linear.in_features)
    scale = _unit_scale(checkpoint, linear, chunks)
    errors = [
        width_errors(
            linear_weight(checkpoint, linear, rows),
            _sensitivity(store, linear, method, rows),
            widths,
            scale=scale,
            threads=resources.threads,
            device=resources.device,
        )
        for rows in chunks
    ]
    return np.concatenate(errors)


def quantize_linears(
    checkpoint: Checkpoint,
    architecture: Architecture,
    store: StatisticsStore,
    bits: dict[str, npt.NDArray[np.uint8]],
    output: PackedCheckpoint,
    options: QuantizeOptions,
    *,
    resources: Resources,
    progress: Progress,
) -> None:
    """Quantize the layers that have their widths, one after the other, into a packed checkpoint.

    Layers that are complete there are taken to be of the same statistics, widths and options, and left as they are.

    Raises:
        UserError: a weight is not finite.
    """
    progress.start("quantizing", len(bits))
    for linear in options.budgeted(architecture):
        if not output.is_complete(linear.name):
            quantize_layer(checkpoint, linear, store, bits[linear.name], output, options, resources)
        progress.step(linear.name)
    progress.finish()


def quantize_layer(
    checkpoint: Checkpoint,
    linear: Linear,
    store: StatisticsStore,
    bits: npt.NDArray[np.uint8],
    output: PackedCheckpoint,
    options: QuantizeOptions,
    resources: Resources,
) -> None:
    """Quantize one layer from the checkpoint, its statistics and its widths to its file, in runs of rows.

    It depends on no other layer and shares no state: any process may do it, on the CPU with the same bytes.

    Args:
        checkpoint: the model.
        linear: the layer.
        store: its statistics, if the method needs them.
        bits: width of each row, uint8 `[N]`.
        output: where the packed layer goes.
        options: how to quantize.
        resources: what to use.

    Raises:
        UserError: a weight is not finite.
    """
    method = options.method
    chunks = resources.chunks(linear.out_features, linear.in_features)
    columns = _columns(checkpoint, linear, store, bits, method, chunks, resources)

    def quantize(rows: slice) -> QuantizedLinear:
        return quantize_rows(
            linear_weight(checkpoint, linear, rows),
            _sensitivity(store, linear, method, rows),
            bits[rows],
            method,
            columns,
            codebook=options.codebook,
            threads=resources.threads,
            device=resources.device,
            name=linear.name,
        )

    _store(output, linear, quantize, chunks, linear_bias(checkpoint, linear))


def quantize_embeddings(
    checkpoint: Checkpoint,
    architecture: Architecture,
    output: PackedCheckpoint,
    options: QuantizeOptions,
    *,
    resources: Resources,
    progress: Progress,
) -> None:
    """Quantize embedding and head at one width for all rows, unless they took part in the allocation.

    What is complete already is left as it is.
    """
    if options.head_bits is None:
        return
    linears = architecture.vocabulary_linears
    progress.start("embedding and head", len(linears))
    for linear in linears:
        if not output.is_complete(linear.name):
            quantize_embedding(checkpoint, linear, output, options.head_bits, options.codebook, resources)
        progress.step(linear.name)
    progress.finish()


def quantize_embedding(
    checkpoint: Checkpoint,
    linear: Linear,
    output: PackedCheckpoint,
    bits: int,
    codebook: CodebookType,
    resources: Resources,
) -> None:
    """Quantize embedding or head at one width for all rows, in runs of rows."""
    chunks = resources.chunks(linear.out_features, linear.in_features)
    scale = _unit_scale(checkpoint, linear, chunks)

    def quantize(rows: slice) -> QuantizedLinear:
        weight = linear_weight(checkpoint, linear, rows)
        return quantize_uniform(
            weight,
            bits,
            scale=scale,
            codebook=codebook,
            threads=resources.threads,
            device=resources.device,
            name=linear.name,
        )

    _store(output, linear, quantize, chunks, None)


def _columns(
    checkpoint: Checkpoint,
    linear: Linear,
    store: StatisticsStore,
    bits: npt.NDArray[np.uint8],
    method: Method,
    chunks: list[slice],
    resources: Resources,
) -> Columns:
    """What the rows of a layer have in common."""
    if method.column_scale:  # trained on all rows at once
        weight, sensitivity = linear_weight(checkpoint, linear), _sensitivity(store, linear, method)
        assert sensitivity is not None  # such methods have an objective
        return Columns(fit_column_scale(weight, sensitivity, bits, resources.threads, resources.device))
    scale = _unit_scale(checkpoint, linear, chunks)
    if not method.correlated:
        return Columns(scale)
    correlation, by_column = damped(store.correlation(linear.name)), _by_column(store, linear, method)
    return Columns(scale, Coupling.of(correlation, by_column, resources.device))


def _unit_scale(checkpoint: Checkpoint, linear: Linear, chunks: list[slice]) -> npt.NDArray[np.float16]:
    """The same power of two for all columns of a layer."""
    largest = 0.0
    for rows in chunks:
        weight = linear_weight(checkpoint, linear, rows)
        largest = max(largest, float(weight.max()), -float(weight.min()))
    return power_of_two_scale(largest, linear.in_features)


def _by_column(store: StatisticsStore, linear: Linear, method: Method) -> npt.NDArray[np.float64]:
    """Sensitivity of every column, float64 `[K]`; summed in groups of rows, whatever fits into memory."""
    total = np.zeros(linear.in_features)
    for start in range(0, linear.out_features, ROW_GROUP):
        group = _sensitivity(store, linear, method, slice(start, start + ROW_GROUP))
        assert group is not None  # correlated methods have an objective
        total += group.sum(axis=0, dtype=np.float64)
    return total


def _sensitivity(
    store: StatisticsStore, linear: Linear, method: Method, rows: slice = slice(None)
) -> npt.NDArray[np.float32] | None:
    """What the squared errors of the weights count, float32 `[N, K]`, or of some rows; None if all the same."""
    if method.objective is None:
        return None
    if method.objective == "sensitivity":
        return store.fisher(linear.name, rows)
    square = store.input_square(linear.name)
    count = len(range(*rows.indices(linear.out_features)))
    return np.ascontiguousarray(np.broadcast_to(square, (count, square.size)))


def _store(
    output: PackedCheckpoint,
    linear: Linear,
    quantize: Callable[[slice], QuantizedLinear],
    chunks: list[slice],
    bias: npt.NDArray[np.float32] | None,
) -> None:
    parts, errors = [], []
    for rows in chunks:
        quantized = quantize(rows)
        parts.append(quantized.pack(None if bias is None else bias[rows]))
        errors.append(quantized.errors)
    packed = PackedLinear.concatenate(parts)
    report = {
        "name": linear.name,
        "shape": [packed.out_features, packed.in_features],
        "rows_per_class": list(packed.rows_per_class),
        "code_bits": packed.code_bits,
        "effective_bits": packed.effective_bits,
        "bytes": packed.nbytes,
        "error": float(np.concatenate(errors).sum()),
    }
    output.write(linear.name, packed, report)


def _save_array(array: npt.NDArray[np.float64], path: Path) -> None:
    with path.open("wb") as file:  # np.save would give the path another suffix
        np.save(file, array)


def _shapes(linears: list[Linear]) -> list[tuple[int, int]]:
    return [(linear.out_features, linear.in_features) for linear in linears]


def _even_average(linears: list[Linear], options: QuantizeOptions, budget: Budget) -> float:
    """The widest average, in steps of 1/64 bit, that the budget allows if it is the same in every layer."""
    if not budget.stored:
        return budget.bits
    costs = [
        budget.row_costs(range(1, 9), linear.in_features, options.codebook, affine=options.method.levels == "range")
        for linear in linears
    ]

    def cost(average: float) -> int:
        widths = [even_bits(linear.out_features, average) for linear in linears]
        return sum(int(row_costs[bits - 1].sum()) for row_costs, bits in zip(costs, widths, strict=True))

    total = budget.total(_shapes(linears), column_scale=options.method.column_scale)
    affordable = [steps / 64 for steps in range(64, 8 * 64 + 1) if cost(steps / 64) <= total]
    if not affordable:
        raise UserError(f"{budget.bits:.3g} effective bits per weight are too few: codes of 1 bit take more")
    return max(affordable)
