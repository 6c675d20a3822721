"""Formats that scale blocks of columns, and what can be put around any of them: GPTQ and SmoothQuant.

Baselines that cannot be exported: they are measured on dequantized weights, and tell every bit that storage would take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from dense_baselines import DenseLinear

from skim_export.calibration.statistics_store import StatisticsStore

__all__ = ["BLOCK_METHODS", "BlockFormat", "BlockMethod", "mxfp4", "mxint4", "quantize_blocks", "rtn_groups"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Rounding = Callable[[Float64], Float64]

MX_BLOCK = 32
E2M1_EXPONENT = 2  # of the largest element, 6 = 1.5 * 2^2
INT4_EXPONENT = 0  # of the largest element, 7/4
E8M0_EXPONENTS = (-127, 127)
GPTQ_DAMPING = 0.01  # of the mean of the diagonal (GPTQ, arXiv 2210.17323, section 3.3)
SMOOTHING = 0.5  # the strength of migration, alpha (SmoothQuant, arXiv 2211.10438, section 4)


@dataclass(frozen=True)
class BlockFormat:
    """How blocks of columns are stored.

    Attributes:
        columns: of a block; the last one of a row may be shorter.
        bits: width of the codes.
        block_bits: what a block takes beside its codes.
        rounding: given blocks of weights, float64 `[N, columns]`, how values in them are rounded to what is stored,
            float64 `[N, n]` to `[N, n]`.
    """

    columns: int
    bits: int
    block_bits: int
    rounding: Callable[[Float64], Rounding]


def rtn_groups(bits: int, group: int = 64) -> BlockFormat:
    """Even levels, asymmetric: each group of columns has a float16 scale and a zero point of `bits` bits.

    The range of a group is extended to hold zero, so that the zero point is a code.
    """
    largest = (1 << bits) - 1

    def rounding(block: Float64) -> Rounding:
        low = np.minimum(block.min(axis=1, keepdims=True), 0)
        high = np.maximum(block.max(axis=1, keepdims=True), 0)
        scale = ((high - low) / largest).astype(np.float16).astype(np.float64)
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
        zero = np.clip(np.rint(-low * inverse), 0, largest)
        return lambda values: (np.clip(np.rint(values * inverse) + zero, 0, largest) - zero) * scale

    return BlockFormat(group, bits, 16 + bits, rounding)


def _microscaled(largest_exponent: int, rounded: Rounding) -> BlockFormat:
    """A format of OCP Microscaling: 32 columns share a power of two (specification 1.0, section 6.3)."""

    def rounding(block: Float64) -> Rounding:
        largest = np.abs(block).max(axis=1, keepdims=True)
        exponent = np.frexp(largest)[1] - 1 - largest_exponent  # frexp: largest = f * 2^e with f in [0.5, 1)
        exponent = np.where(largest > 0, np.clip(exponent, *E8M0_EXPONENTS), E8M0_EXPONENTS[0])
        return lambda values: np.ldexp(rounded(np.ldexp(values, -exponent)), exponent)

    return BlockFormat(MX_BLOCK, 4, 8, rounding)


def _e2m1(elements: Float64) -> Float64:
    """Nearest FP4 E2M1, ties to even, saturating at 6 (section 5.3)."""
    # Its spacing: 0.5 up to 2, then 1, and 2 from 4 on. An even multiple of it has an even mantissa.
    spacing = np.where(np.abs(elements) < 2, 0.5, np.where(np.abs(elements) < 4, 1.0, 2.0))
    rounded: Float64 = np.clip(np.rint(elements / spacing) * spacing, -6, 6)
    return rounded


def _int4(elements: Float64) -> Float64:
    """Nearest multiple of 1/4, ties to even, saturating at 7/4: MXINT8's elements of section 5.3 with 4 bits."""
    rounded: Float64 = np.clip(np.rint(elements * 4), -7, 7) / 4
    return rounded


mxfp4 = _microscaled(E2M1_EXPONENT, _e2m1)
mxint4 = _microscaled(INT4_EXPONENT, _int4)


@dataclass(frozen=True)
class BlockMethod:
    """A format and what is put around it.

    Attributes:
        kind: the format, or that of a width if it leaves a choice.
        feedback: whether errors are made up for in later columns, as GPTQ does.
        smooth: whether columns are scaled before, as SmoothQuant does.
    """

    kind: BlockFormat | Callable[[int], BlockFormat]
    feedback: bool = False
    smooth: bool = False

    @property
    def one_width(self) -> bool:
        """Whether the format leaves no choice of the width."""
        return isinstance(self.kind, BlockFormat)

    @property
    def calibrated(self) -> bool:
        """Whether it looks at more than the weights."""
        return self.feedback or self.smooth

    def quantize(self, weight: Float32, bits: float | None, store: StatisticsStore, name: str) -> DenseLinear:
        """Quantize a linear layer, W float32 `[N, K]`, of that name in the statistics."""
        if isinstance(self.kind, BlockFormat):
            kind = self.kind
        else:
            assert bits is not None  # there is a choice
            kind = self.kind(int(bits))
        if not self.calibrated:
            return quantize_blocks(weight, kind)
        square = store.input_square(name).astype(np.float64)
        scale = _smoothing(weight, square) if self.smooth else np.ones(len(square))
        hessian = None
        if self.feedback:
            root = np.sqrt(square) / scale
            hessian = root[:, None] * store.correlation(name) * root
        scaled = quantize_blocks((weight * scale).astype(np.float32), kind, hessian)
        return replace(scaled, weight=(scaled.weight / scale).astype(np.float32))


def _with_gptq(name: str, kind: BlockFormat | Callable[[int], BlockFormat]) -> dict[str, BlockMethod]:
    return {
        f"gptq-{name}": BlockMethod(kind, feedback=True),
        f"smoothquant-gptq-{name}": BlockMethod(kind, feedback=True, smooth=True),
    }


BLOCK_METHODS = {
    "rtn-g64": BlockMethod(rtn_groups),
    **_with_gptq("g64", rtn_groups),
    "mxfp4": BlockMethod(mxfp4),
    **_with_gptq("mxfp4", mxfp4),
    "mxint4": BlockMethod(mxint4),
    **_with_gptq("mxint4", mxint4),
}
"""By their names in the tables. SmoothQuant and GPTQ with MX formats are what arXiv 2405.07135 looks at."""


def quantize_blocks(weight: Float32, kind: BlockFormat, hessian: Float64 | None = None) -> DenseLinear:
    """Round to nearest, or with a Hessian by error feedback (GPTQ, arXiv 2210.17323).

    There columns are taken in their order, and the error of each is made up for in those to come; a block gets its
    scale when its turn comes.

    Args:
        weight: W, float32 `[N, K]`.
        kind: of blocks.
        hessian: of the columns, float64 `[K, K]`, positive on its diagonal after damping.
    """
    rows, columns = weight.shape
    left, result = weight.astype(np.float64), np.empty((rows, columns))
    factor = None if hessian is None else _feedback_factor(hessian)
    for start in range(0, columns, kind.columns):
        block = slice(start, min(start + kind.columns, columns))
        rounding = kind.rounding(left[:, block])
        if factor is None:
            result[:, block] = rounding(left[:, block])
            continue
        errors = np.empty((rows, block.stop - start))
        for k in range(start, block.stop):
            result[:, k : k + 1] = rounding(left[:, k : k + 1])
            errors[:, k - start] = (left[:, k] - result[:, k]) / factor[k, k]
            left[:, k + 1 : block.stop] -= np.outer(errors[:, k - start], factor[k, k + 1 : block.stop])
        left[:, block.stop :] -= errors @ factor[block, block.stop :]
    stored = kind.bits * rows * columns + kind.block_bits * rows * -(-columns // kind.columns)
    return DenseLinear(np.ascontiguousarray(result, np.float32), kind.bits, stored)


def _smoothing(weight: Float32, input_square: Float64) -> Float64:
    """What the columns are multiplied by before rounding, and divided by after it, float64 `[K]`.

    |x|^a / max|w|^(1 - a) of each column (SmoothQuant, arXiv 2211.10438, equation 4), |x| the root mean square, for
    calibration keeps no maximum; 1 where either is 0.
    """
    inputs, weights = np.sqrt(input_square), np.abs(weight).max(axis=0).astype(np.float64)
    usable = (inputs > 0) & (weights > 0)
    inputs, weights = np.where(usable, inputs, 1), np.where(usable, weights, 1)
    scale: Float64 = inputs**SMOOTHING / weights ** (1 - SMOOTHING)
    return scale


def _feedback_factor(hessian: Float64) -> Float64:
    """Upper Cholesky factor of the inverse of the damped Hessian, float64 `[K, K]`."""
    damped = hessian + np.eye(len(hessian)) * (GPTQ_DAMPING * float(np.mean(np.diag(hessian))) or 1.0)
    upper: npt.NDArray[Any] = np.linalg.cholesky(np.linalg.inv(damped)).T
    return upper
