"""Methods that keep some weights apart from the codes: they are measured on dequantized weights and cannot be exported.

Each takes a weight W, float32 `[N, K]`, and tells every bit that its storage would take.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skim_export.packed import CodebookType, PackedLinear
from skim_export.quantize import METHODS, quantize_linear
from skim_export.quantize.levels import fit_tables
from skim_export.quantize.solver import WeightRows
from skim_export.work.resources import Resources

__all__ = ["DenseLinear", "skim_sparse", "squeezellm_sparse"]

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

SENSITIVE = 0.0005  # share of the weights that SqueezeLLM keeps for their sensitivity
OUTLIERS = 0.0040  # and for their magnitude


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


def _largest(values: Float32, share: float) -> npt.NDArray[np.bool_]:
    """Which entries are among that share of the largest; a positive value each."""
    count = round(share * values.size)
    chosen = np.zeros(values.size, np.bool_)
    if count:
        chosen[np.argpartition(values.ravel(), -count)[-count:]] = True
    return chosen.reshape(values.shape) & (values > 0)
