"""The methods: one linear layer in, codes and levels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from skim_export.packed import PackedLinear, RowLevels, level_bytes
from skim_export.quantize.levels import CodebookType, fit_affine, fit_tables, range_affine
from skim_export.quantize.refinement import Coupling, damped, feed_back, refine_tables
from skim_export.quantize.scaling import fit_column_scale, unit_column_scale
from skim_export.quantize.solver import Layer, error_curves, refine
from skim_export.work.resources import Resources
from skim_runtime.errors import UserError

__all__ = [
    "AFFINE_BITS",
    "DEFAULT_METHOD",
    "METHODS",
    "Columns",
    "Method",
    "QuantizedLinear",
    "even_levels_pay",
    "method_named",
    "quantize_linear",
    "quantize_rows",
    "quantize_uniform",
    "width_errors",
]


@dataclass(frozen=True)
class Method:
    """What a method is made of.

    Attributes:
        objective: what weighs the squared errors of the weights: "sensitivity", the Fisher information of every weight
            (SqueezeLLM, arXiv 2306.07629), "layer", the mean square of its input, or None, all alike.
        levels: "table", free codebooks by exact k-means, or "range", even levels from the smallest to the largest
            weight of a row.
        allocation: rows get their widths greedily over the whole model (SKIM, arXiv 2412.04180, section 3.2).
        column_scale: a trained scale of the columns (SKIM, section 3.3).
        correlated: the errors of a row's weights are seen together (error feedback, and for tables coordinate descent).
        points: of the clustering, see `skim_export.quantize.solver.kmeans`; None for the optimum.
    """

    objective: Literal["sensitivity", "layer"] | None
    levels: Literal["table", "range"] = "table"
    allocation: bool = False
    column_scale: bool = False
    correlated: bool = False
    points: int | None = None


METHODS = {
    "skim+": Method("sensitivity", allocation=True, correlated=True),
    "skim": Method("sensitivity", allocation=True, column_scale=True),
    "squeezellm": Method("sensitivity"),
    "gptq": Method("layer", levels="range", correlated=True),
    "weights": Method(None, points=1024),
    "rtn": Method(None, levels="range"),
}

DEFAULT_METHOD = "skim+"

AFFINE_BITS = (
    7  # from this width on a free codebook gains next to nothing over even levels and costs ten times the time
)

# What free levels are worth beside even ones, in bits a weight: log4 of the ratio of the least squared errors for a
# normal distribution (Max, "Quantizing for minimum distortion", IRE Transactions on Information Theory, 1960).
FREE_LEVELS_GAIN = {1: 0.0, 2: 0.01, 3: 0.06, 4: 0.14, 5: 0.24, 6: 0.35}

Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]


def method_named(name: str) -> Method:
    """One of `METHODS`.

    Raises:
        UserError: there is none of that name.
    """
    if name not in METHODS:
        raise UserError(f"--method {name}: must be one of {', '.join(METHODS)}")
    return METHODS[name]


@dataclass(frozen=True)
class QuantizedLinear:
    """One quantized layer.

    Attributes:
        codes: uint8 `[N, K]`.
        levels: the levels of the rows.
        column_scale: positive, float16 `[K]`.
        errors: weighted squared error of each row as stored, float64 `[N]`.
    """

    codes: UInt8
    levels: RowLevels
    column_scale: Float16
    errors: Float64

    def pack(self, bias: Float32 | None = None) -> PackedLinear:
        """The layer in the packed format, with a bias float32 `[N]` if there is one."""
        ones = bool((self.column_scale == 1).all())
        return PackedLinear.pack(self.codes, self.levels, None if ones else self.column_scale, bias)


def width_errors(
    weight: Float32,
    fisher: Float32 | None,
    widths: Sequence[int],
    *,
    scale: Float16 | None = None,
    resources: Resources | None = None,
) -> Float64:
    """Weighted squared error of each row at each width, float64 `[N, widths]`, for bit allocation.

    That is before a column scale is trained, which needs the widths. Free codebooks (before their entries are rounded)
    below `AFFINE_BITS`, affine levels from there on.

    Args:
        weight: W, float32 `[N, K]`.
        fisher: weights of the squared errors, float32 `[N, K]`; None for all 1.
        widths: widths in bits.
        scale: of the columns, float16 `[K]`; None for that of these rows.
        resources: see `Layer`.
    """
    scale = unit_column_scale(weight) if scale is None else scale
    layer = Layer(weight, fisher, scale.astype(np.float32), resources)
    free = [b for b in widths if b < AFFINE_BITS]
    curves = error_curves(layer, max(free)) if free else np.zeros((layer.rows, 0))
    columns = []
    for b in widths:
        columns.append(curves[:, b - 1] if b in free else fit_affine(layer, np.full(layer.rows, b, np.uint8))[2])
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Columns:
    """What the rows of a layer have in common; given that, each is quantized by itself.

    Attributes:
        scale: of the columns, positive, float16 `[K]`.
        coupling: of the columns; None if the errors of a row's weights are not seen together.
    """

    scale: Float16
    coupling: Coupling | None = None


def quantize_linear(
    weight: Float32,
    sensitivity: Float32 | None,
    bits: UInt8,
    method: Method,
    *,
    correlation: Float32 | None = None,
    codebook: CodebookType = "int8",
    resources: Resources | None = None,
    name: str = "weight",
) -> QuantizedLinear:
    """Quantize one linear layer whose rows have their widths, all of it in memory.

    Args:
        weight: W, float32 `[N, K]`.
        sensitivity: see `quantize_rows`.
        bits: width of each row, uint8 `[N]`, 1..8.
        method: its objective and allocation are the caller's part.
        correlation: of the columns, float32 `[K, K]`, 1 on its diagonal; for methods that are `correlated`.
        codebook: type of codebook entries.
        resources: see `Layer`.
        name: of the layer, for messages.

    Raises:
        UserError: a weight or a sensitivity is not finite.
    """
    _check(weight, sensitivity, method, name)
    if method.column_scale and sensitivity is not None:
        scale = fit_column_scale(weight, sensitivity, bits, resources)
    else:
        scale = unit_column_scale(weight)
    coupling = None
    if method.correlated and correlation is not None:
        by_column = None if sensitivity is None else sensitivity.sum(axis=0, dtype=np.float64)
        coupling = Coupling.of(damped(correlation.copy()), by_column, None if resources is None else resources.device)
    columns = Columns(scale, coupling)
    return quantize_rows(weight, sensitivity, bits, method, columns, codebook=codebook, resources=resources, name=name)


def quantize_rows(
    weight: Float32,
    sensitivity: Float32 | None,
    bits: UInt8,
    method: Method,
    columns: Columns,
    *,
    codebook: CodebookType = "int8",
    resources: Resources | None = None,
    name: str = "weight",
) -> QuantizedLinear:
    """Quantize some rows of a linear layer; what becomes of a row does not depend on which others there are.

    Free codebooks are used below `AFFINE_BITS`; rows of more bits get affine levels, fitted to the same objective.

    Args:
        weight: some rows of W, float32 `[R, K]`.
        sensitivity: weights of the squared errors, float32 `[R, K]`, at least 0; None if the method has no objective. A
            row of zeros is quantized as if all its weights mattered alike.
        bits: width of each row, uint8 `[R]`, 1..8.
        method: its objective and allocation are the caller's part.
        columns: of the whole layer.
        codebook: type of codebook entries.
        resources: see `Layer`.
        name: of the layer, for messages.

    Raises:
        UserError: a weight or a sensitivity is not finite.
    """
    _check(weight, sensitivity, method, name)
    layer = Layer(weight, sensitivity, columns.scale.astype(np.float32), resources)
    if method.levels == "range":
        return _quantized(_fit_range(layer, bits, columns.coupling), columns.scale)
    return _quantized(_fit(layer, bits, method, codebook, columns.coupling), columns.scale)


def quantize_uniform(
    weight: Float32,
    bits: int = 8,
    *,
    scale: Float16 | None = None,
    codebook: CodebookType = "int8",
    resources: Resources | None = None,
    name: str = "weight",
) -> QuantizedLinear:
    """Quantize a matrix whose weights all matter alike (embedding, output head) with one width for all rows.

    The levels are even or free ones, see `even_levels_pay`; `scale` is that of the columns of the whole matrix, float16
    `[K]`, None for that of these rows. The other arguments and errors are those of `quantize_rows`.
    """
    _check(weight, None, METHODS["rtn"], name)
    scale = unit_column_scale(weight) if scale is None else scale
    layer = Layer(weight, None, scale.astype(np.float32), resources)
    row_bits = np.full(len(weight), bits, np.uint8)
    if even_levels_pay(bits, weight.shape[1], codebook):
        return _quantized(fit_affine(layer, row_bits), scale)
    return _quantized(fit_tables(layer, row_bits, codebook), scale)


def even_levels_pay(bits: int, columns: int, codebook: CodebookType) -> bool:
    """Whether even levels are the better use of the bits for rows of `columns` weights that all matter alike.

    A codebook has to earn what it takes. For normally distributed weights free levels gain `FREE_LEVELS_GAIN` bits a
    weight; in a row of 576 weights a codebook of 6 bits takes 0.86.
    """
    if bits >= AFFINE_BITS:
        return True
    further = level_bytes(bits, codebook, affine=False) - level_bytes(bits, codebook, affine=True)
    return 8 * further / columns >= FREE_LEVELS_GAIN[bits]


def _quantized(result: tuple[UInt8, RowLevels, Float64], scale: Float16) -> QuantizedLinear:
    codes, levels, errors = result
    return QuantizedLinear(codes, levels, scale, errors)


def _fit_range(layer: Layer, bits: UInt8, coupling: Coupling | None) -> tuple[UInt8, RowLevels, Float64]:
    """Even levels over the range of each row."""
    codes, levels, errors = range_affine(layer, bits)
    if coupling is not None:
        values = levels.values()
        codes = feed_back(layer, coupling, bits, values)
        errors = refine(layer, coupling.correlation, bits, values, codes, rounds=1, sweeps=0, fit=False)[2]
    return codes, levels, errors


def _fit(
    layer: Layer, bits: UInt8, method: Method, codebook: CodebookType, coupling: Coupling | None
) -> tuple[UInt8, RowLevels, Float64]:
    """Free codebooks for narrow rows, affine levels for wide ones."""
    wide = bits >= AFFINE_BITS
    if wide.all():
        return fit_affine(layer, bits)
    if not wide.any():
        return _fit_tables(layer, bits, method, codebook, coupling)
    codes, errors = np.empty(layer.values.shape, np.uint8), np.empty(layer.rows)
    kind = np.empty(layer.rows, np.uint8)
    scale, offset = np.empty(layer.rows, np.float16), np.empty(layer.rows, np.float16)
    free_codes, free, free_errors = _fit_tables(layer.take(~wide), bits[~wide], method, codebook, coupling)
    even_codes, even, even_errors = fit_affine(layer.take(wide), bits[wide])
    entries = np.zeros((layer.rows, free.entries.shape[1]), free.entries.dtype)
    entries[~wide] = free.entries
    for target, narrow_rows, wide_rows in (
        (codes, free_codes, even_codes),
        (errors, free_errors, even_errors),
        (kind, free.kind, even.kind),
        (scale, free.scale, even.scale),
        (offset, free.offset, even.offset),
    ):
        target[~wide], target[wide] = narrow_rows, wide_rows
    return codes, RowLevels(bits, kind, entries, scale, offset), errors


def _fit_tables(
    layer: Layer, bits: UInt8, method: Method, codebook: CodebookType, coupling: Coupling | None
) -> tuple[UInt8, RowLevels, Float64]:
    if coupling is None:
        return fit_tables(layer, bits, codebook, method.points)
    return refine_tables(layer, coupling, bits, codebook)


def _check(weight: Float32, sensitivity: Float32 | None, method: Method, name: str) -> None:
    if sensitivity is None and method.objective is not None:
        raise ValueError(f"{name}: a method with an objective needs sensitivities")
    for what, array in (("weight", weight), ("sensitivity", sensitivity)):
        if array is not None and not np.isfinite(array).all():
            row, column = np.argwhere(~np.isfinite(array))[0].tolist()
            raise UserError(f"{name}: {what} at row {row}, column {column} is {array[row, column]}, must be finite")
    if sensitivity is not None and sensitivity.min() < 0:
        raise UserError(f"{name}: sensitivities must be at least 0, got {sensitivity.min():g}")
