"""One layer of a model, from the checkpoint and its calibration statistics to its file.

A layer depends on no other layer and shares no state: any process may work on it, with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skim_export.calibration.statistics_store import StatisticsStore
from skim_export.checkpoint import Architecture, Checkpoint, Linear, linear_bias, linear_weight
from skim_export.packed import PackedLinear, row_bytes
from skim_export.packed.checkpoint import PackedCheckpoint
from skim_export.quantize import (
    DEFAULT_METHOD,
    METHODS,
    CodebookType,
    Columns,
    Coupling,
    Method,
    QuantizedLinear,
    damped,
    fit_column_scale,
    power_of_two_scale,
    quantize_rows,
    quantize_uniform,
    width_errors,
)
from skim_export.quantize.solver import refine_bytes
from skim_export.work.resources import ROW_GROUP, WORKING_BYTES, Resources
from skim_export.work.sealed import write_sealed_array

__all__ = [
    "QuantizeOptions",
    "layer_errors",
    "packed_bytes",
    "quantize_embedding",
    "quantize_layer",
    "working_bytes",
    "write_layer_errors",
]

FREE_LEVELS = 64  # of a row, at most
WHOLE_LAYER_BYTES = 32  # for one weight, where a column scale is trained
FLOAT = 4


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

    def budgeted(self, architecture: Architecture) -> list[Linear]:
        """The linear layers that the budget is for."""
        return architecture.linears + (architecture.vocabulary_linears if self.head_bits is None else [])


def working_bytes(linear: Linear, resources: Resources, options: QuantizeOptions) -> int:
    """Memory that it takes to quantize a layer, a careful estimate."""
    rows, columns = linear.out_features, linear.in_features
    chunk = resources.chunks(rows, columns)[0]
    total: int = (chunk.stop - chunk.start) * columns * WORKING_BYTES + 2 * packed_bytes(linear)
    if options.method.correlated:
        total += 4 * FLOAT * columns * columns  # the correlation, and what its factor is made of
        total += refine_bytes(columns, FREE_LEVELS, resources.threads)
    if options.method.column_scale:
        total += rows * columns * WHOLE_LAYER_BYTES
    return total


def packed_bytes(linear: Linear) -> int:
    """Bytes of a packed layer, at most: at 8 bits."""
    return linear.out_features * row_bytes(8, linear.in_features)


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
            resources=resources,
        )
        for rows in chunks
    ]
    return np.concatenate(errors)


def write_layer_errors(
    path: Path,
    checkpoint: Checkpoint,
    linear: Linear,
    store: StatisticsStore,
    widths: Sequence[int],
    options: QuantizeOptions,
    resources: Resources,
) -> None:
    """Keep `layer_errors` in a .npy file."""
    write_sealed_array(path, layer_errors(checkpoint, linear, store, widths, options.method, resources))


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
            resources=resources,
            name=linear.name,
        )

    _store(output, linear, quantize, chunks, linear_bias(checkpoint, linear))


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
            resources=resources,
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
        return Columns(fit_column_scale(weight, sensitivity, bits, resources))
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
