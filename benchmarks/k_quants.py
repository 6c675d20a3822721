"""The k-quants of GGUF (Q2_K to Q6_K) as a baseline: the sizes and values of ggml's formats, with a search of our own.

A super-block of 256 weights has blocks of 16 or 32 with small integers as scales, which one float16 (two in types with
minima) turns into numbers:

    symmetric (Q3_K, Q6_K)        w = d * scale * q                       q and scale signed
    asymmetric (Q2_K, Q4_K, Q5_K) w = d * scale * q - dmin * minimum      all integers at least 0

Super-blocks run over the flattened matrix here. In GGUF they may not cross rows, so that a matrix whose K is no
multiple of 256 (SmolLM2-135M has K = 576) falls back to a larger type there: this is what k-quants could be at best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from dense_baselines import DenseLinear

__all__ = ["K_QUANTS", "KBlocks", "KQuant", "k_quantize", "quantize_super_blocks"]

Float32 = npt.NDArray[np.float32]
Int16 = npt.NDArray[np.int16]

SUPER_BLOCK = 256
CHUNK = 1024  # super-blocks at a time: what they need stays in the cache
SHIFTS = np.linspace(-0.9, 0.9, 13)  # candidates: the block's range is mapped to so many more codes than there are
REFITS = 2
NOTHING = 1e-30  # weights of this size are zero in a float16 factor anyway


@dataclass(frozen=True)
class KQuant:
    """A type of k-quant.

    Attributes:
        bits: width of the codes.
        block: weights of a block.
        scale_limit: scales reach from 0 to this if asymmetric, else from -this to this - 1.
        asymmetric: whether blocks have a minimum.
        nbytes: bytes of a super-block.
    """

    bits: int
    block: int
    scale_limit: int
    asymmetric: bool
    nbytes: int


K_QUANTS = {
    "q2_k": KQuant(2, 16, 15, True, 84),
    "q3_k": KQuant(3, 16, 32, False, 110),
    "q4_k": KQuant(4, 32, 63, True, 144),
    "q5_k": KQuant(5, 32, 63, True, 176),
    "q6_k": KQuant(6, 16, 128, False, 210),
}


@dataclass(frozen=True)
class KBlocks:
    """Quantized super-blocks, B of them with n blocks each.

    Attributes:
        d: float16 `[B]`.
        dmin: float16 `[B]`; zero in symmetric types.
        scales: int16 `[B, n]`.
        minima: int16 `[B, n]`; zero in symmetric types.
        codes: int16 `[B, n, 256 / n]`.
    """

    d: npt.NDArray[np.float16]
    dmin: npt.NDArray[np.float16]
    scales: Int16
    minima: Int16
    codes: Int16

    def dequantize(self) -> Float32:
        """float32 `[B, 256]`, to the last bit what ggml's own dequantization gives."""
        scale = self.d.astype(np.float32)[:, None] * self.scales
        minimum = self.dmin.astype(np.float32)[:, None] * self.minima
        values: Float32 = scale[..., None] * self.codes - minimum[..., None]
        return values.reshape(len(values), SUPER_BLOCK)


def k_quantize(weight: Float32, name: str, importance: Float32 | None = None) -> DenseLinear:
    """Quantize a matrix to a k-quant.

    Args:
        weight: W, float32 `[N, K]`.
        name: "q2_k" to "q6_k".
        importance: weights of the squared errors, at least 0, `[N, K]` or `[1, K]` for columns; None for W^2.
    """
    kind = K_QUANTS[name]
    importance = weight * weight if importance is None else np.broadcast_to(importance, weight.shape)
    padding = -weight.size % SUPER_BLOCK
    values = np.pad(weight.ravel(), (0, padding)).reshape(-1, SUPER_BLOCK)
    weights = np.pad(importance.ravel(), (0, padding)).reshape(-1, SUPER_BLOCK)
    restored = np.empty_like(values)
    for start in range(0, len(values), CHUNK):
        chunk = slice(start, start + CHUNK)
        restored[chunk] = quantize_super_blocks(values[chunk], weights[chunk], kind).dequantize()
    weight_hat = restored.ravel()[: weight.size].reshape(weight.shape)
    return DenseLinear(weight_hat, kind.bits, 8 * kind.nbytes * len(values))


def quantize_super_blocks(values: Float32, importance: Float32, kind: KQuant) -> KBlocks:
    """Quantize super-blocks, each for itself.

    Scales of the blocks are found by weighted least squares over the codes of several ranges, then rounded; the factors
    of the super-block are fitted to the rounded scales in turn with the codes. The best that was seen is kept.

    Args:
        values: float32 `[B, 256]`.
        importance: weights of the squared errors, float32 `[B, 256]`, at least 0; where all are 0, all count alike.
        kind: the type.
    """
    x = values.reshape(len(values), -1, kind.block)
    mean = importance.mean(axis=1, keepdims=True)
    w = np.divide(importance, mean, out=np.ones_like(importance), where=mean > 0).reshape(x.shape)
    search = _search_asymmetric if kind.asymmetric else _search_symmetric
    scale, minimum = search(x, w, kind.bits)
    d, scales = _round_scales(scale, kind)
    dmin, minima = _round_scales(minimum, kind) if kind.asymmetric else (np.zeros_like(d), np.zeros_like(scales))
    best = _encode(x, d, dmin, scales, minima, kind)
    least = _error(best, values, w)
    latest = best
    for _ in range(REFITS):
        latest = _encode(x, *_refit(x, w, latest), scales, minima, kind)
        error = _error(latest, values, w)
        best = _choose(error < least, latest, best)
        least = np.minimum(error, least)
    return best


def _search_symmetric(x: Float32, w: Float32, bits: int) -> tuple[Float32, Float32]:
    """Scale of each block, `[B, n]`, and zeros: the code -2^(bits - 1) goes to about the largest magnitude."""
    half = 1 << (bits - 1)
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=2)[..., None], axis=2)
    wx = w * x
    best_gain = np.zeros(x.shape[:2], np.float32)
    best_scale = np.zeros(x.shape[:2], np.float32)
    for shift in SHIFTS:
        q = np.clip(np.rint(x * _divide(np.float32(-(half + shift)), peak)), -half, half - 1)
        xq, qq = (wx * q).sum(axis=2), (w * q * q).sum(axis=2)
        scale = _divide(xq, qq)
        better = xq * scale > best_gain  # the error is sum(w x^2) less this
        best_gain = np.where(better, xq * scale, best_gain)
        best_scale = np.where(better, scale, best_scale)
    return best_scale, np.zeros_like(best_scale)


def _search_asymmetric(x: Float32, w: Float32, bits: int) -> tuple[Float32, Float32]:
    """Scale and minimum of each block, `[B, n]`, both at least 0."""
    largest = (1 << bits) - 1
    low = np.minimum(x.min(axis=2), 0)
    extent = x.max(axis=2) - low
    best_scale, best_minimum = extent / np.float32(largest), -low
    best_error = np.full(low.shape, np.inf, np.float32)
    w_sum, wx = w.sum(axis=2), w * x
    x_sum = wx.sum(axis=2)
    for shift in SHIFTS:
        inverse = _divide(np.float32(largest + shift), extent)
        q = np.clip(np.rint((x - low[..., None]) * inverse[..., None]), 0, largest)
        wq = w * q
        q_sum, qq, xq = wq.sum(axis=2), (wq * q).sum(axis=2), (wx * q).sum(axis=2)
        determinant = w_sum * qq - q_sum * q_sum
        scale = _divide(w_sum * xq - x_sum * q_sum, determinant)
        minimum = _divide(q_sum * xq - qq * x_sum, determinant)
        scale = np.where(minimum < 0, _divide(xq, qq), scale)
        minimum = np.maximum(minimum, 0)
        residual = x - scale[..., None] * q + minimum[..., None]
        error = (w * residual * residual).sum(axis=2)
        better = (error < best_error) & (scale > 0)
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
        best_minimum = np.where(better, minimum, best_minimum)
    return best_scale, best_minimum


def _round_scales(scale: Float32, kind: KQuant) -> tuple[Float32, Int16]:
    """One float16 factor a super-block, as float32 `[B]`, and integers `[B, n]` that it multiplies."""
    if kind.asymmetric:
        factor = scale.max(axis=1) / np.float32(kind.scale_limit)
        lowest, highest = 0, kind.scale_limit
    else:
        peak = np.take_along_axis(scale, np.abs(scale).argmax(axis=1)[:, None], axis=1)[:, 0]
        factor = peak / np.float32(-kind.scale_limit)
        lowest, highest = -kind.scale_limit, kind.scale_limit - 1
    factor = _as_float16(factor)
    rounded = np.clip(np.rint(_divide(scale, factor[:, None])), lowest, highest)
    return factor, rounded.astype(np.int16)


def _encode(x: Float32, d: Float32, dmin: Float32, scales: Int16, minima: Int16, kind: KQuant) -> KBlocks:
    """The nearest codes for given scales."""
    shifted = x + (dmin[:, None] * minima)[..., None]
    half = 0 if kind.asymmetric else 1 << (kind.bits - 1)
    q = np.rint(_divide(shifted, (d[:, None] * scales)[..., None]))
    codes = np.clip(q, -half, (1 << kind.bits) - 1 - half).astype(np.int16)
    return KBlocks(d.astype(np.float16), dmin.astype(np.float16), scales, minima, codes)


def _refit(x: Float32, w: Float32, blocks: KBlocks) -> tuple[Float32, Float32]:
    """The factors of each super-block, `[B]`, that suit its codes best (weighted least squares)."""
    u = blocks.scales[..., None] * blocks.codes.astype(np.float32)
    v = np.broadcast_to(blocks.minima[..., None].astype(np.float32), u.shape)
    axes = (1, 2)
    uu, uv, vv = (w * u * u).sum(axes), (w * u * v).sum(axes), (w * v * v).sum(axes)
    ux, vx = (w * u * x).sum(axes), (w * v * x).sum(axes)
    determinant = uu * vv - uv * uv
    two = (determinant > 0) & (uv * ux > uu * vx)  # dmin > 0
    d = np.where(two, _divide(vv * ux - uv * vx, determinant), _divide(ux, uu))
    dmin = np.where(two, _divide(uv * ux - uu * vx, determinant), 0)
    return _as_float16(d), _as_float16(dmin.astype(np.float32))


def _error(blocks: KBlocks, values: Float32, w: Float32) -> Float32:
    """Weighted squared error of each super-block, `[B]`."""
    difference = (values - blocks.dequantize()).reshape(w.shape)
    error: Float32 = (w * difference * difference).sum(axis=(1, 2))
    return error


def _choose(better: npt.NDArray[np.bool_], new: KBlocks, old: KBlocks) -> KBlocks:
    """Super-blocks of `new` where it is better; scales and minima are the same."""
    return KBlocks(
        np.where(better, new.d, old.d),
        np.where(better, new.dmin, old.dmin),
        old.scales,
        old.minima,
        np.where(better[:, None, None], new.codes, old.codes),
    )


def _as_float16(values: Float32) -> Float32:
    return values.astype(np.float16).astype(np.float32)


def _divide(numerator: Float32 | np.float32, denominator: Float32) -> Float32:
    """The quotient, float32, and 0 where the denominator is 0 or so small that the quotient might overflow."""
    shape = np.broadcast_shapes(np.shape(numerator), denominator.shape)
    zero = np.zeros(shape, np.float32)
    return np.divide(numerator, denominator, out=zero, where=np.abs(denominator) > NOTHING)
