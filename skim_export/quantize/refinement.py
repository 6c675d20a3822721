"""Codes and levels under the full objective, in which the errors of the weights of a row act together.

The objective of a row with error d is d^T S^1/2 C S^1/2 d: S its sensitivities, C the correlation of the columns (see
docs/quantizer.md). On the diagonal it is the objective of weighted k-means.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skim_export.packed import RowLevels
from skim_export.quantize.levels import CodebookType, round_levels
from skim_export.quantize.solver import Layer, feedback, kmeans, refine

__all__ = ["damped", "feed_back", "refine_tables"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]

_DAMPING = 0.1  # less follows the chance correlations of a small calibration text, more ignores the true ones
_ROUNDS = 3  # alternations between levels and codes
_SWEEPS = 3  # over the codes of a row in each of them


def damped(correlation: Float32) -> Float32:
    """The correlation with its off-diagonal part reduced: the solvers need it well conditioned."""
    result = correlation * np.float32(1 - _DAMPING)
    np.fill_diagonal(result, 1)
    return result


def feed_back(layer: Layer, correlation: Float32, bits: UInt8, levels: Float32) -> UInt8:
    """Codes by error feedback (GPTQ, arXiv 2210.17323), the most sensitive columns first, uint8 `[N, K]`.

    Args:
        layer: W, sensitivities and column scale.
        correlation: of the columns, damped, float32 `[K, K]`.
        bits: width of each row, uint8 `[N]`.
        levels: float32 `[N, 2^max(bits)]`, ascending.
    """
    columns = np.arange(layer.columns)
    if layer.weights is not None:
        columns = np.argsort(-layer.weights.sum(axis=0, dtype=np.float64), kind="stable")
    factor = _inverse_factor(correlation[np.ix_(columns, columns)])
    codes = np.empty(layer.values.shape, np.uint8)
    codes[:, columns] = feedback(layer.permuted(columns), factor, bits, levels)
    return codes


def _inverse_factor(correlation: Float32) -> Float32:
    """Upper Cholesky factor of the inverse, float32 `[K, K]`; on one thread, for their number changes the bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(correlation)))
        factor: Float32 = torch.linalg.cholesky(inverse, upper=True).contiguous().numpy()
    finally:
        torch.set_num_threads(threads)
    return factor


def refine_tables(
    layer: Layer, correlation: Float32, bits: UInt8, codebook: CodebookType
) -> tuple[UInt8, RowLevels, Float64]:
    """Quantize rows to free codebooks under the full objective.

    Error feedback on the levels of weighted k-means, then levels and codes improved in turn; the levels are rounded to
    stored entries, and the codes improved once more for those.

    Args:
        layer: W, sensitivities and column scale.
        correlation: of the columns, damped, float32 `[K, K]`.
        bits: width of each row, uint8 `[N]`.
        codebook: type of the entries.

    Returns:
        codes, uint8 `[N, K]`; levels; full objective of each row as stored, float64 `[N]`.
    """
    centroids, _, _ = kmeans(layer, bits)
    codes = feed_back(layer, correlation, bits, centroids)
    centroids, codes, _ = refine(layer, correlation, bits, centroids, codes, rounds=_ROUNDS, sweeps=_SWEEPS)
    levels = round_levels(centroids, _mass(layer, codes, centroids.shape[1]), bits, codebook)
    _, codes, errors = refine(layer, correlation, bits, levels.values(), codes, rounds=1, sweeps=_SWEEPS, fit=False)
    return codes, levels, errors


def _mass(layer: Layer, codes: UInt8, stride: int) -> Float32:
    """The weight that each level carries, float32 `[N, stride]`."""
    weights = np.ones(layer.values.shape, np.float32) if layer.weights is None else layer.weights
    weights = weights * layer.column_scale**2
    where = codes + stride * np.arange(layer.rows)[:, None]
    mass = np.bincount(where.ravel(), weights.ravel(), stride * layer.rows)
    return mass.reshape(layer.rows, stride).astype(np.float32)
