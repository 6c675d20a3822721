"""Methods whose levels do not fit one codebook a row: they are measured on dequantized weights and cannot be exported.

Each takes a weight W, float32 `[N, K]`, and tells every bit that its storage would take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skim_export.packed import CodebookType, PackedLinear
from skim_export.quantize import METHODS, quantize_linear
from skim_export.quantize.levels import fit_tables
from skim_export.quantize.solver import WeightRows
from skim_export.work.resources import Resources

__all__ = ["DenseLinear", "mxfp4", "rtn_grouped", "squeezellm_sparse"]

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

SENSITIVE = 0.0005  # share of the weights that SqueezeLLM keeps for their sensitivity
OUTLIERS = 0.0040  # and for their magnitude
MX_BLOCK = 32
E2M1_EXPONENT = 2  # of the largest element, 6 = 1.5 * 2^2
E8M0_EXPONENTS = (-127, 127)


@dataclass(frozen=True)
class DenseLinear:
    """A quantized weight as the multiplication sees it.

    Attributes:
        weight: dequantized, float32 `[N, K]`.
        code_bits: mean width of the codes alone.
        bits: everything that is stored.
    """

    weight: Float32
    code_bits: float
    bits: int

    def dequantize(self) -> Float32:
        """The weight, as `PackedLinear.dequantize` gives it."""
        return self.weight


def rtn_grouped(weight: Float32, bits: int, group: int = 64) -> DenseLinear:
    """Round to nearest, asymmetric: each group of columns has a float16 scale and a zero point of `bits` bits.

    The range of a group is extended to hold zero, so that the zero point is a code. The last group of a row may be
    shorter.

    Args:
        weight: W, float32 `[N, K]`.
        bits: width of the codes, 1..8.
        group: columns of a group.
    """
    rows, columns = weight.shape
    grouped = _in_groups(weight, group)  # [N, groups, group]
    low = np.minimum(grouped.min(axis=2, keepdims=True), 0)
    high = np.maximum(grouped.max(axis=2, keepdims=True), 0)
    largest = (1 << bits) - 1
    scale = ((high - low) / largest).astype(np.float16).astype(np.float32)
    inverse = _reciprocal(scale)
    zero = np.clip(np.rint(-low * inverse), 0, largest)
    codes = np.clip(np.rint(grouped * inverse) + zero, 0, largest)
    stored = rows * columns * bits + scale.size * (16 + bits)
    return DenseLinear(_flat((codes - zero) * scale, columns), bits, stored)


def mxfp4(weight: Float32) -> DenseLinear:
    """MXFP4: blocks of 32 columns with FP4 E2M1 elements and a power of two, E8M0, as scale.

    OCP Microscaling Formats (MX) specification 1.0, section 6.3 (conversion) and 5.3 (elements): elements are rounded
    to the nearest, ties to even, and saturate at 6 times the scale.
    """
    rows, columns = weight.shape
    blocks = _in_groups(weight, MX_BLOCK)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    exponent = np.frexp(largest)[1] - 1 - E2M1_EXPONENT  # frexp: largest = f * 2^e with f in [0.5, 1)
    exponent = np.where(largest > 0, np.clip(exponent, *E8M0_EXPONENTS), E8M0_EXPONENTS[0])
    elements = np.ldexp(blocks.astype(np.float64), -exponent)
    # Spacing of E2M1: 0.5 up to 2, then 1, and 2 from 4 on. An even multiple of it has an even mantissa.
    spacing = np.where(np.abs(elements) < 2, 0.5, np.where(np.abs(elements) < 4, 1.0, 2.0))
    elements = np.clip(np.rint(elements / spacing) * spacing, -6, 6)
    stored = 4 * rows * columns + 8 * exponent.size
    return DenseLinear(_flat(np.ldexp(elements, exponent), columns), 4, stored)


def squeezellm_sparse(
    weight: Float32,
    fisher: Float32,
    bits: UInt8,
    *,
    codebook: CodebookType = "int8",
    resources: Resources | None = None,
) -> DenseLinear:
    """SqueezeLLM's dense-and-sparse decomposition (arXiv 2306.07629, section 4.2).

    The most sensitive weights (largest Fisher information) and the outliers (largest magnitude of the rest) are kept in
    float16 as a CSR matrix: a value and a column of 16 bits each, a pointer of 32 bits a row. They take no part in the
    exact k-means of the others; their dense codes, which stand for nothing, are stored nevertheless.

    Args:
        weight: W, float32 `[N, K]`, with K at most 65536.
        fisher: diagonal Fisher information, float32 `[N, K]`.
        bits: width of each row, uint8 `[N]`.
        codebook: type of codebook entries.
        resources: what to use.
    """
    kept = _largest(fisher, SENSITIVE)
    kept |= _largest(np.where(kept, 0, np.abs(weight)), OUTLIERS)
    rows = WeightRows(weight, np.where(kept, np.float32(0), fisher), None, resources)
    codes, levels, _ = fit_tables(rows, bits, codebook)
    return _restored(weight, kept, PackedLinear.pack(codes, levels))


def skim_sparse(
    weight: Float32,
    fisher: Float32,
    correlation: Float32,
    bits: UInt8,
    *,
    codebook: CodebookType = "int8",
    resources: Resources | None = None,
) -> DenseLinear:
    """Method `skim+` with a sparse part of the same size: the weights that plain k-means does the most harm to.

    That is F d^2, with d the error of k-means; it sees sensitivity and distance from all levels at once.

    Args:
        weight: W, float32 `[N, K]`, with K at most 65536.
        fisher: diagonal Fisher information, float32 `[N, K]`.
        correlation: of the columns, float32 `[K, K]`.
        bits: width of each row, uint8 `[N]`.
        codebook: type of codebook entries.
        resources: what to use.
    """
    plain = quantize_linear(weight, fisher, bits, METHODS["squeezellm"], codebook=codebook, resources=resources)
    error = weight - plain.pack().dequantize()
    kept = _largest(fisher * error * error, SENSITIVE + OUTLIERS)
    rest = np.where(kept, np.float32(0), fisher)
    method = METHODS["skim+"]
    dense = quantize_linear(weight, rest, bits, method, correlation=correlation, codebook=codebook, resources=resources)
    return _restored(weight, kept, dense.pack())


def _restored(weight: Float32, kept: npt.NDArray[np.bool_], dense: PackedLinear) -> DenseLinear:
    """A packed linear in which some weights have their values in float16 from a CSR matrix."""
    restored = np.where(kept, weight.astype(np.float16).astype(np.float32), dense.dequantize())
    csr = int(kept.sum()) * (16 + 16) + 32 * (len(weight) + 1)
    return DenseLinear(restored, dense.code_bits, 8 * dense.nbytes + csr)


def _in_groups(weight: Float32, group: int) -> Float32:
    """`[N, K]` as `[N, groups, group]`; a short last group is filled up with zeros."""
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -columns % group)))
    return padded.reshape(rows, -1, group)


def _flat(groups: npt.NDArray[Any], columns: int) -> Float32:
    flat: Float32 = groups.reshape(len(groups), -1)[:, :columns].astype(np.float32)
    return np.ascontiguousarray(flat)


def _reciprocal(scale: Float32) -> Float32:
    """1 / scale, and 0 where a scale is 0."""
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)


def _largest(values: Float32, share: float) -> npt.NDArray[np.bool_]:
    """Which entries are among that share of the largest; a positive value each."""
    count = round(share * values.size)
    chosen = np.zeros(values.size, np.bool_)
    if count:
        chosen[np.argpartition(values.ravel(), -count)[-count:]] = True
    return chosen.reshape(values.shape) & (values > 0)
