"""The methods: one linear layer in, codes and levels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from skim_export.packed import PackedLinear, RowLevels
from skim_export.quantize.levels import CodebookType, fit_affine, fit_tables, range_affine
from skim_export.quantize.scaling import fit_column_scale, unit_column_scale
from skim_export.quantize.solver import Layer, error_curves
from skim_runtime.errors import UserError

__all__ = [
    "AFFINE_BITS",
    "Method",
    "QuantizedLinear",
    "quantize_linear",
    "quantize_uniform",
    "width_errors",
]

Method = Literal["skim", "squeezellm", "rtn"]

AFFINE_BITS = (
    7  # from this width on a free codebook gains next to nothing over even levels and costs ten times the time
)

Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]


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
    threads: int | None = None,
) -> Float64:
    """Weighted squared error of each row at each width, float64 `[N, widths]`, for bit allocation.

    That is before a column scale is trained, which needs the widths. Free codebooks (before their entries are rounded)
    below `AFFINE_BITS`, affine levels from there on.

    Args:
        weight: W, float32 `[N, K]`.
        fisher: weights of the squared errors, float32 `[N, K]`; None for all 1.
        widths: widths in bits.
        threads: threads to use; None for all.
    """
    layer = Layer(weight, fisher, unit_column_scale(weight).astype(np.float32), threads)
    free = [b for b in widths if b < AFFINE_BITS]
    curves = error_curves(layer, max(free)) if free else np.zeros((layer.rows, 0))
    columns = []
    for b in widths:
        columns.append(curves[:, b - 1] if b in free else fit_affine(layer, np.full(layer.rows, b, np.uint8))[2])
    return np.stack(columns, axis=1)


def quantize_linear(
    weight: Float32,
    fisher: Float32 | None,
    bits: UInt8,
    method: Method,
    *,
    codebook: CodebookType = "int8",
    threads: int | None = None,
    name: str = "weight",
) -> QuantizedLinear:
    """Quantize one linear layer.

    - `skim`: exact weighted k-means of W over a trained column scale (SKIM, arXiv 2412.04180).
    - `squeezellm`: exact weighted k-means (the dense part of SqueezeLLM, arXiv 2306.07629).
    - `rtn`: even levels from the smallest to the largest weight of a row, rounded to the nearest.

    The first two take affine levels, fitted to the same objective, for rows of `AFFINE_BITS` and more.

    Args:
        weight: W, float32 `[N, K]`.
        fisher: diagonal Fisher information, float32 `[N, K]`, at least 0; `rtn` ignores it. A row of zeros is
            quantized as if all its weights mattered alike.
        bits: width of each row, uint8 `[N]`, 1..8.
        method: one of the above.
        codebook: type of codebook entries.
        threads: threads to use; None for all. The result does not depend on it.
        name: of the layer, for messages.

    Raises:
        UserError: a weight or a sensitivity is not finite.
    """
    _check(weight, fisher, method, name)
    if method == "skim" and fisher is not None:
        scale = fit_column_scale(weight, fisher, bits, threads)
    else:
        scale = unit_column_scale(weight)
    layer = Layer(weight, None if method == "rtn" else fisher, scale.astype(np.float32), threads)
    return _quantized(range_affine(layer, bits) if method == "rtn" else _fit(layer, bits, codebook), scale)


def quantize_uniform(
    weight: Float32,
    bits: int = 8,
    *,
    codebook: CodebookType = "int8",
    threads: int | None = None,
    name: str = "weight",
) -> QuantizedLinear:
    """Quantize a matrix whose weights all matter alike (embedding, output head) with one width for all rows.

    Args and errors are those of `quantize_linear`.
    """
    _check(weight, None, "rtn", name)
    scale = unit_column_scale(weight)
    layer = Layer(weight, None, scale.astype(np.float32), threads)
    return _quantized(_fit(layer, np.full(len(weight), bits, np.uint8), codebook), scale)


def _quantized(result: tuple[UInt8, RowLevels, Float64], scale: Float16) -> QuantizedLinear:
    codes, levels, errors = result
    return QuantizedLinear(codes, levels, scale, errors)


def _fit(layer: Layer, bits: UInt8, codebook: CodebookType) -> tuple[UInt8, RowLevels, Float64]:
    """Free codebooks for narrow rows, affine levels for wide ones."""
    wide = bits >= AFFINE_BITS
    if wide.all():
        return fit_affine(layer, bits)
    if not wide.any():
        return fit_tables(layer, bits, codebook)
    codes, errors = np.empty(layer.values.shape, np.uint8), np.empty(layer.rows)
    kind = np.empty(layer.rows, np.uint8)
    scale, offset = np.empty(layer.rows, np.float16), np.empty(layer.rows, np.float16)
    free_codes, free, free_errors = fit_tables(layer.take(~wide), bits[~wide], codebook)
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


def _check(weight: Float32, fisher: Float32 | None, method: Method, name: str) -> None:
    if method not in ("skim", "squeezellm", "rtn"):
        raise UserError(f"method {method!r}: must be skim, squeezellm or rtn")
    if fisher is None and method != "rtn":
        raise UserError(f"{name}: method {method} needs the Fisher information of the weights")
    for what, array in (("weight", weight), ("Fisher information", fisher)):
        if array is not None and not np.isfinite(array).all():
            row, column = np.argwhere(~np.isfinite(array))[0].tolist()
            raise UserError(f"{name}: {what} at row {row}, column {column} is {array[row, column]}, must be finite")
    if fisher is not None and fisher.min() < 0:
        raise UserError(f"{name}: Fisher information must be at least 0, got {fisher.min():g}")
