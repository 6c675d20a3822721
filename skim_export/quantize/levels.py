"""Stored levels: centroids rounded to codebook entries, and evenly spaced (affine) levels.

Both work on v = W / column_scale; what a code stands for is defined in docs/format.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skim_export.packed import CodebookType, LevelKind, RowLevels
from skim_export.quantize.solver import WeightRows, assign, assign_affine, kmeans

__all__ = ["Float16", "fit_affine", "fit_tables", "range_affine", "round_levels"]

Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]

_LARGEST_ENTRIES = range(127, 111, -1)  # candidates for the largest int8 entry of a row; down to 64 gains nothing more
_SMALLEST_SCALE = 2.0**-24  # of float16
_AFFINE_ROUNDS = 3  # alternations between codes and affine levels; more gain under 0.1 % of the error


def fit_tables(
    rows: WeightRows, bits: UInt8, codebook: CodebookType, points: int | None = None
) -> tuple[UInt8, RowLevels, Float64]:
    """Quantize rows to free codebooks: k-means, centroids rounded to stored entries, codes assigned again.

    Args:
        rows: W, weights of the squared errors and column scale.
        bits: width of each row, uint8 `[N]`.
        codebook: type of the entries.
        points: of the clustering, see `kmeans`; None for the optimum.

    Returns:
        codes, uint8 `[N, K]`; levels; weighted squared error of each row as stored, float64 `[N]`.
    """
    centroids, mass, _ = kmeans(rows, bits, points)
    levels = round_levels(centroids, mass, bits, codebook)
    codes, errors = assign(rows, bits, levels.values())
    return codes, levels, errors


def round_levels(centroids: Float32, mass: Float32, bits: UInt8, codebook: CodebookType) -> RowLevels:
    """Free levels as they are stored.

    Args:
        centroids: float32 `[N, 2^max(bits)]`.
        mass: the weight that each carries, float32 of the same shape.
        bits: width of each row, uint8 `[N]`.
        codebook: type of the entries.
    """
    entries: npt.NDArray[np.int8] | Float16
    if codebook == "int8":
        entries, scale = np.zeros(centroids.shape, np.int8), np.zeros(len(centroids), np.float16)
        for b in np.unique(bits).tolist():  # each width for itself: sums over rows of another length round otherwise
            rows, used = bits == b, slice(0, 1 << b)
            rounded = _round_to_int8(centroids[rows, used].astype(np.float64), mass[rows, used].astype(np.float64))
            entries[rows, used], scale[rows] = rounded
    else:
        entries, scale = centroids.astype(np.float16), np.zeros(len(centroids), np.float16)
    kind = np.full(len(centroids), LevelKind.TABLE, np.uint8)
    offset, memory = np.zeros(len(centroids), np.float16), np.zeros(len(centroids), np.uint8)
    return RowLevels(bits, kind, entries, scale, offset, memory)


def _round_to_int8(centroids: Float64, mass: Float64) -> tuple[npt.NDArray[np.int8], Float16]:
    """int8 entries and one scale per row with the least weighted rounding error.

    Few centroids and many steps: some scales fit all of them nearly exactly, so every scale that puts the largest
    entry at one of `_LARGEST_ENTRIES` is tried, each improved by least squares.
    """
    largest = np.abs(centroids).max(axis=1)
    best = np.full(len(centroids), np.inf)
    entries = np.zeros(centroids.shape, np.int8)
    scale = np.zeros(len(centroids), np.float16)
    for top in _LARGEST_ENTRIES:
        candidate = _float16_scale(largest / top)
        rounded = _round_entries(centroids, candidate)
        power = np.sum(mass * rounded * rounded, axis=1)
        fitted = np.divide(np.sum(mass * rounded * centroids, axis=1), power, out=candidate.copy(), where=power > 0)
        candidate = _float16_scale(fitted)
        rounded = _round_entries(centroids, candidate)
        error = np.sum(mass * (centroids - rounded * candidate[:, None]) ** 2, axis=1)
        better = error < best
        best[better] = error[better]
        entries[better] = rounded[better]
        scale[better] = candidate[better]
    return entries, scale


def _float16_scale(scale: Float64) -> Float64:
    return np.maximum(scale, _SMALLEST_SCALE).astype(np.float16).astype(np.float64)


def _round_entries(centroids: Float64, scale: Float64) -> Float64:
    return np.clip(np.rint(centroids / scale[:, None]), -127, 127)


def range_affine(rows: WeightRows, bits: UInt8) -> tuple[UInt8, RowLevels, Float64]:
    """Quantize rows to even levels from the smallest to the largest value, by rounding to the nearest.

    Takes and returns what `fit_tables` does.
    """
    return _affine(rows, bits, rounds=0)


def fit_affine(rows: WeightRows, bits: UInt8) -> tuple[UInt8, RowLevels, Float64]:
    """Quantize rows to even levels, fitted by weighted least squares in turn with the codes.

    Takes and returns what `fit_tables` does. The best round of each row is kept, so no row is worse than with
    `range_affine`.
    """
    return _affine(rows, bits, rounds=_AFFINE_ROUNDS)


def _affine(rows: WeightRows, bits: UInt8, rounds: int) -> tuple[UInt8, RowLevels, Float64]:
    scaled = rows.values / rows.column_scale
    low, high = (edge.astype(np.float64) for edge in (scaled.min(axis=1), scaled.max(axis=1)))
    half = np.ldexp(0.5, bits)
    scale = (high - low) / (2 * half - 1)
    best = _round_affine(rows, bits, scale, low + scale * half)
    latest = best
    for _ in range(rounds):
        latest = _round_affine(rows, bits, *latest.refitted)
        best = best.better_rows(latest)
    kind = np.full(rows.count, LevelKind.AFFINE, np.uint8)
    entries = np.zeros((rows.count, 0), np.int8)
    memory = np.zeros(rows.count, np.uint8)
    return best.codes, RowLevels(bits, kind, entries, best.scale, best.offset, memory), best.errors


@dataclass
class _Affine:
    scale: Float16
    offset: Float16
    codes: UInt8
    errors: Float64
    refitted: tuple[Float64, Float64]  # scale and offset that suit these codes best

    def better_rows(self, other: _Affine) -> _Affine:
        better = other.errors < self.errors
        return _Affine(
            np.where(better, other.scale, self.scale),
            np.where(better, other.offset, self.offset),
            np.where(better[:, None], other.codes, self.codes),
            np.where(better, other.errors, self.errors),
            other.refitted,
        )


def _round_affine(rows: WeightRows, bits: UInt8, scale: Float64, offset: Float64) -> _Affine:
    stored = scale.astype(np.float16), offset.astype(np.float16)
    codes, errors, refitted = assign_affine(rows, bits, stored[0].astype(np.float32), stored[1].astype(np.float32))
    return _Affine(*stored, codes, errors, refitted)
