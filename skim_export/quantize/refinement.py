"""Codes and levels under the full objective, in which the errors of the weights of a row act together.

The objective of a row with error d is d^T S^1/2 C S^1/2 d: S its sensitivities, C the correlation of the columns (see
docs/quantizer.md). On the diagonal it is the objective of weighted k-means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from skim_export.packed import CodebookType, RowLevels, lane_columns
from skim_export.quantize.levels import round_levels
from skim_export.quantize.one_thread import one_thread
from skim_export.quantize.solver import WeightRows, feedback, kmeans, refine

if TYPE_CHECKING:
    import torch

__all__ = ["REFINE_ROUNDS", "Coupling", "damped", "feed_back", "lane_order", "level_mass", "refine_tables"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]

_DAMPING = 0.1  # less follows the chance correlations of a small calibration text, more ignores the true ones
REFINE_ROUNDS = 3  # alternations between levels and codes
_SWEEPS = 3  # over the codes of a row in each of them


def damped(correlation: Float32) -> Float32:
    """The correlation, changed in place, with its off-diagonal part reduced: the solvers need it well conditioned."""
    correlation *= np.float32(1 - _DAMPING)
    np.fill_diagonal(correlation, 1)
    return correlation


@dataclass(frozen=True)
class Coupling:
    """How the columns of a linear go together; the same for all of its rows.

    Attributes:
        correlation: of the columns, damped, float32 `[K, K]`; lane after lane, if there are lanes.
        order: the columns in the order of error feedback, int64 `[K]`.
        factor: upper Cholesky factor of the inverse of the correlation in that order, float32 `[K, K]`.
        lanes: whether that order is lane after lane, as windows are found.
    """

    correlation: Float32
    order: npt.NDArray[np.int64]
    factor: Float32
    lanes: bool = False

    @classmethod
    def none(cls, columns: int, *, lanes: bool = False) -> Coupling:
        """Of columns that do not go together; with `lanes` as `of` has it."""
        identity = np.eye(columns, dtype=np.float32)
        order = lane_columns(columns).reshape(-1) if lanes else np.arange(columns)
        return cls(identity, order, identity, lanes)

    @classmethod
    def of(
        cls,
        correlation: Float32,
        sensitivity: Float64 | None,
        device: torch.device | None = None,
        *,
        lanes: bool = False,
    ) -> Coupling:
        """Factor a correlation.

        Args:
            correlation: of the columns, damped, float32 `[K, K]`.
            sensitivity: of each column, float64 `[K]`: the most sensitive come first. None to keep their order.
            device: where torch factors it; None for one thread of the CPU, which always gives the same bits.
            lanes: whether the columns of a lane stay together, as windows need it; there must be sensitivities.
        """
        order = np.arange(len(correlation))
        if sensitivity is not None:
            order = lane_order(sensitivity) if lanes else np.argsort(-sensitivity, kind="stable")
        ordered = correlation[np.ix_(order, order)]
        if lanes:
            correlation = ordered.copy()
        if device is None:
            return cls(correlation, order, _inverse_factor(ordered), lanes)
        from skim_export.quantize import torch_solver

        return cls(correlation, order, torch_solver.inverse_factor(ordered, device), lanes)


def lane_order(sensitivity: Float64) -> npt.NDArray[np.int64]:
    """Columns lane after lane, the most sensitive lanes first, int64 `[K]`; K is a multiple of 32.

    Args:
        sensitivity: of each column, float64 `[K]`.
    """
    lanes = lane_columns(len(sensitivity))
    return lanes[np.argsort(-sensitivity[lanes].sum(axis=1), kind="stable")].reshape(-1)


def feed_back(rows: WeightRows, coupling: Coupling, bits: UInt8, levels: Float32) -> UInt8:
    """Codes by error feedback (GPTQ, arXiv 2210.17323), the most sensitive columns first, uint8 `[N, K]`.

    Args:
        rows: W, sensitivities and column scale.
        coupling: of the columns.
        bits: width of each row, uint8 `[N]`.
        levels: float32 `[N, 2^max(bits)]`, ascending.
    """
    codes = np.empty(rows.values.shape, np.uint8)
    codes[:, coupling.order] = feedback(rows.permuted(coupling.order), coupling.factor, bits, levels)
    return codes


def _inverse_factor(correlation: Float32) -> Float32:
    """Upper Cholesky factor of the inverse, float32 `[K, K]`; on one thread, for their number changes the bits.

    The matrix may take 1 GB, so all happens in its memory and that of one more; it is overwritten.
    """
    import torch

    with one_thread():
        matrix, other = torch.from_numpy(correlation), torch.empty(correlation.shape)
        torch.linalg.cholesky(matrix, out=other)
        torch.cholesky_inverse(other, out=matrix)
        torch.linalg.cholesky(matrix, upper=True, out=other)
        factor: Float32 = other.contiguous().numpy()
    return factor


def refine_tables(
    rows: WeightRows, coupling: Coupling, bits: UInt8, codebook: CodebookType
) -> tuple[UInt8, RowLevels, Float64]:
    """Quantize rows to free codebooks under the full objective.

    Error feedback on the levels of weighted k-means, then levels and codes improved in turn; the levels are rounded to
    stored entries, and the codes improved once more for those.

    Args:
        rows: W, sensitivities and column scale.
        coupling: of the columns.
        bits: width of each row, uint8 `[N]`.
        codebook: type of the entries.

    Returns:
        codes, uint8 `[N, K]`; levels; full objective of each row as stored, float64 `[N]`.
    """
    centroids, _, _ = kmeans(rows, bits)
    correlation = coupling.correlation
    codes = feed_back(rows, coupling, bits, centroids)
    centroids, codes, _ = refine(rows, correlation, bits, centroids, codes, rounds=REFINE_ROUNDS, sweeps=_SWEEPS)
    levels = round_levels(centroids, level_mass(rows, codes, centroids.shape[1]), bits, codebook)
    _, codes, errors = refine(rows, correlation, bits, levels.values(), codes, rounds=1, sweeps=_SWEEPS, fit=False)
    return codes, levels, errors


def level_mass(rows: WeightRows, codes: UInt8, stride: int) -> Float32:
    """The weight that each level carries, float32 `[N, stride]`."""
    weights = np.ones(rows.values.shape, np.float32) if rows.weights is None else rows.weights
    weights = weights * rows.column_scale**2
    where = codes + stride * np.arange(rows.count)[:, None]
    mass = np.bincount(where.ravel(), weights.ravel(), stride * rows.count)
    return mass.reshape(rows.count, stride).astype(np.float32)
