"""The trainable scaling vector over the columns (SKIM, arXiv 2412.04180, section 3.3).

Rows are clustered as W / a, so columns of different spread can share a codebook. k-means has no gradient in a; with the
codes held fixed the objective has one, and since it is diagonal the descent has closed steps: centroids are weighted
means, and `a_k = sum_r F_rk w_rk c_r / sum_r F_rk c_r^2`. Then the rows are clustered again.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skim_export.quantize.solver import Layer, kmeans, refit
from skim_export.work.resources import Resources

__all__ = ["fit_column_scale", "power_of_two_scale", "unit_column_scale"]

Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]

_BOUND = 8.0  # a stays within 1/8..8 around its geometric mean
_EXPONENTS = (-11, 12)  # of that mean, so that a is a normal float16 number
_USUAL = range(-4, 7)  # exponents of the largest weight of a layer that needs no scale
_TRIAL_ROWS = 256  # that starts are compared on
_ROUNDS = 2
_DESCENTS = 4  # steps with the same codes
_STRETCH = 2.0  # codes held fixed hold a back: go further in the same direction


def unit_column_scale(weight: Float32) -> Float16:
    """The same power of two for all columns, float16 `[K]`: see `power_of_two_scale`."""
    return power_of_two_scale(float(np.abs(weight).max()), weight.shape[1])


def power_of_two_scale(largest: float, columns: int) -> Float16:
    """The same power of two for all columns, float16 `[columns]`: 1 unless the weights are tiny or huge.

    Tiny weights are brought to 1/2..1, or else the float16 scales of their rows would lose precision.

    Args:
        largest: absolute value of the largest weight of the layer.
        columns: K.
    """
    exponent = int(np.clip(np.frexp(largest)[1], *_EXPONENTS)) if largest > 0 else 0
    return np.full(columns, 1 if exponent in _USUAL else np.ldexp(1.0, exponent), np.float16)


def fit_column_scale(
    weight: Float32,
    fisher: Float32,
    bits: UInt8,
    resources: Resources | None = None,
) -> Float16:
    """The column scale with the least weighted error found, float16 `[K]`; never worse than `unit_column_scale`.

    Args:
        weight: W, float32 `[N, K]`.
        fisher: weights of the squared errors, float32 `[N, K]`, at least 0.
        bits: width of each row, uint8 `[N]`; the widths of the rows as they will be, or about that.
        resources: see `Layer`.
    """
    unit = unit_column_scale(weight)
    trial = slice(None, None, max(1, len(weight) // _TRIAL_ROWS))
    starts = [unit, *(_bounded(start, unit) for start in _spreads(weight, fisher))]
    trial_errors = [
        _cluster(Layer(weight[trial], fisher[trial], start.astype(np.float32), resources), bits[trial])[0]
        for start in starts
    ]
    scale = starts[int(np.argmin(trial_errors))]
    best, least = unit, _cluster(Layer(weight, fisher, unit.astype(np.float32), resources), bits)[0]
    for left in reversed(range(_ROUNDS + 1)):
        layer = Layer(weight, fisher, scale.astype(np.float32), resources)
        error, centroids, codes = _cluster(layer, bits)
        if error < least:
            best, least = scale, error
        if left:
            descended = _descend(layer, bits, centroids, codes)
            scale = _bounded(scale * (descended / scale) ** _STRETCH, unit)
    return best


def _spreads(weight: Float32, fisher: Float32) -> list[Float64]:
    """Root mean square of the columns, weighted by the sensitivity of the weights, and by that of the rows."""
    squares = weight.astype(np.float64) ** 2
    sensitivity = fisher.sum(axis=0, dtype=np.float64)
    by_weight = np.einsum("nk,nk->k", fisher, squares) / np.where(sensitivity > 0, sensitivity, 1)
    by_row = fisher.sum(axis=1, dtype=np.float64) @ squares
    return [np.sqrt(by_weight), np.sqrt(by_row)]


def _cluster(layer: Layer, bits: UInt8) -> tuple[float, Float32, UInt8]:
    centroids, _, codes = kmeans(layer, bits)
    return float(refit(layer, bits, codes, centroids)[1].sum()), centroids, codes


def _descend(layer: Layer, bits: UInt8, centroids: Float32, codes: UInt8) -> Float64:
    """Block coordinate descent over centroids and column scale with the codes held fixed."""
    scale = layer.column_scale.astype(np.float64)
    for _ in range(_DESCENTS):
        step = Layer(layer.values, layer.weights, scale.astype(np.float32), layer.resources)
        centroids, _, numerator, denominator = refit(step, bits, codes, centroids)
        wanted = np.divide(numerator, denominator, out=scale.copy(), where=denominator > 0)
        scale = np.clip(wanted, scale / _BOUND, scale * _BOUND)
    return scale


def _bounded(scale: Float64, unit: Float16) -> Float16:
    """`scale` as float16 within the bounds, its geometric mean brought to that of `unit`."""
    positive = scale[scale > 0]
    mean = np.exp(np.log(positive).mean()) if positive.size else 1.0
    return np.asarray(unit * np.clip(scale / mean, 1 / _BOUND, _BOUND), np.float16)
