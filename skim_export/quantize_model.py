"""The steps from a checkpoint and its calibration tokens to packed linears."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from skim_export.budget import Budget, widths_around
from skim_export.calibration import calibrate
from skim_export.checkpoint import Architecture, Checkpoint, Linear, linear_bias, linear_weight
from skim_export.packed_checkpoint import PackedCheckpoint
from skim_export.quantize import (
    DEFAULT_METHOD,
    METHODS,
    CodebookType,
    LayerCurves,
    Method,
    QuantizedLinear,
    allocate_bits,
    even_bits,
    quantize_linear,
    quantize_uniform,
    width_errors,
)
from skim_export.statistics_store import StatisticsStore
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

__all__ = [
    "QuantizeOptions",
    "allocate",
    "gather_statistics",
    "method_named",
    "quantize_embeddings",
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


def method_named(name: str) -> Method:
    """One of `METHODS`.

    Raises:
        UserError: there is none of that name.
    """
    if name not in METHODS:
        raise UserError(f"--method {name}: must be one of {', '.join(METHODS)}")
    return METHODS[name]


def gather_statistics(
    checkpoint: Checkpoint,
    architecture: Architecture,
    tokens: npt.NDArray[np.int64],
    store: StatisticsStore,
    *,
    vocabulary: bool = False,
    threads: int,
    progress: Progress,
) -> None:
    """Run the calibration tokens `[S, T]` through the model and keep the statistics of every linear layer.

    With `vocabulary`, also of embedding and head.
    """
    for linear, statistics in calibrate(
        checkpoint, architecture, tokens, vocabulary=vocabulary, threads=threads, progress=progress
    ):
        store.write(linear.name, statistics)


def allocate(
    checkpoint: Checkpoint,
    architecture: Architecture,
    store: StatisticsStore,
    options: QuantizeOptions,
    budget: Budget,
    *,
    threads: int,
    progress: Progress,
) -> dict[str, npt.NDArray[np.uint8]]:
    """The width of every row of every layer that the budget is for, uint8 `[N]` by name.

    Methods with allocation spend the budget greedily over all rows of the model, the others give every layer the same
    average.

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
        weight = linear_weight(checkpoint, linear)
        errors = width_errors(weight, _sensitivity(store, linear, options.method), widths, threads=threads)
        layers.append(LayerCurves(errors, np.array(widths, np.uint8), costs))
        progress.step(linear.name)
    progress.finish()
    bits = allocate_bits(layers, budget.total(_shapes(linears), column_scale=options.method.column_scale))
    return {linear.name: row_bits for linear, row_bits in zip(linears, bits, strict=True)}


def quantize_linears(
    checkpoint: Checkpoint,
    architecture: Architecture,
    store: StatisticsStore,
    bits: dict[str, npt.NDArray[np.uint8]],
    output: PackedCheckpoint,
    options: QuantizeOptions,
    *,
    threads: int,
    progress: Progress,
) -> None:
    """Quantize the layers that have their widths, one after the other, into a packed checkpoint.

    Raises:
        UserError: a weight is not finite.
    """
    progress.start("quantizing", len(bits))
    for linear in options.budgeted(architecture):
        quantized = quantize_linear(
            linear_weight(checkpoint, linear),
            _sensitivity(store, linear, options.method),
            bits[linear.name],
            options.method,
            correlation=store.correlation(linear.name) if options.method.correlated else None,
            codebook=options.codebook,
            threads=threads,
            name=linear.name,
        )
        _store(output, linear.name, quantized, linear_bias(checkpoint, linear))
        progress.step(linear.name)
    progress.finish()


def quantize_embeddings(
    checkpoint: Checkpoint,
    architecture: Architecture,
    output: PackedCheckpoint,
    options: QuantizeOptions,
    *,
    threads: int,
    progress: Progress,
) -> None:
    """Quantize embedding and head at one width for all rows, unless they took part in the allocation."""
    if options.head_bits is None:
        return
    linears = architecture.vocabulary_linears
    progress.start("embedding and head", len(linears))
    for linear in linears:
        weight, bits = linear_weight(checkpoint, linear), options.head_bits
        quantized = quantize_uniform(weight, bits, codebook=options.codebook, threads=threads, name=linear.name)
        _store(output, linear.name, quantized, None)
        progress.step(linear.name)
    progress.finish()


def _sensitivity(store: StatisticsStore, linear: Linear, method: Method) -> npt.NDArray[np.float32] | None:
    """What the squared errors of the weights count, float32 `[N, K]`; None if all the same."""
    if method.objective is None:
        return None
    if method.objective == "sensitivity":
        return store.fisher(linear.name)
    square = store.input_square(linear.name)
    return np.ascontiguousarray(np.broadcast_to(square, (linear.out_features, square.size)))


def _store(
    output: PackedCheckpoint, name: str, quantized: QuantizedLinear, bias: npt.NDArray[np.float32] | None
) -> None:
    packed = quantized.pack(bias)
    report = {
        "name": name,
        "shape": [packed.out_features, packed.in_features],
        "rows_per_class": list(packed.rows_per_class),
        "code_bits": packed.code_bits,
        "effective_bits": packed.effective_bits,
        "bytes": packed.nbytes,
        "error": float(quantized.errors.sum()),
    }
    output.write(name, packed, report)


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
