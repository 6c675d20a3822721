"""The solver: weighted k-means, nearest levels, weighted means, error feedback and refinement of rows of weights.

It is given `WeightRows`: values `[N, K]` with weights of their squared errors `[N, K]` (None: all 1) and a positive
scale per column `[K]`; value k of a row is stored as `level * column_scale[k]`. Results do not depend on the number of
threads.

What is heavy (`error_curves`, `kmeans`, `feedback`, `refine`) is done in torch where the rows have a device, see
`torch_solver.py`. All else is native: `assign`, `assign_affine` and `refit` look at a weight once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from skim_export.quantize.native_library import NativeRows, most_bits, rows_together, solver_library
from skim_export.work.resources import Resources

if TYPE_CHECKING:
    import torch

__all__ = [
    "LANE",
    "POINTS",
    "WeightRows",
    "assign",
    "assign_affine",
    "error_curves",
    "feedback",
    "kmeans",
    "refine",
    "refit",
    "window_kinds",
]

POINTS = 1024  # where a cluster may begin in a row, if not anywhere: the error is nearly that of the optimum
_CALL_SECONDS = 0.25  # about as long as one call may take: Ctrl-C is seen between calls
_SECONDS_PER_LEVEL = 2e-8  # of the dynamic program, for one weight and one level
LANE = 8  # columns whose windows are found together
_MOST_MEMORY, _MOST_WINDOW_BITS = 3, 5  # see native/row_refine.h
_SECONDS_PER_PASS = 4e-11  # of one thread, to multiply a weight with one column's entry of a correlation

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]


class WeightRows:
    """Rows of a linear as the solver is given them; the arrays are checked once and kept alive.

    Args:
        values: W, float32 `[N, K]`, finite.
        weights: weights of the squared errors, float32 `[N, K]`, at least 0; None for all 1.
        column_scale: positive, float32 `[K]`; None for all 1.
        resources: threads, and the device where torch does what is heavy, be it the CPU; by default all threads and
            the native solver. Without a device the result does not depend on them.

    Raises:
        ValueError: an array has another type or shape.
    """

    def __init__(
        self,
        values: Float32,
        weights: Float32 | None = None,
        column_scale: Float32 | None = None,
        resources: Resources | None = None,
    ) -> None:
        if values.ndim != 2 or values.dtype != np.float32 or 0 in values.shape:
            raise ValueError(f"values must be float32 [N, K], got {values.dtype} {list(values.shape)}")
        if weights is not None and (weights.shape != values.shape or weights.dtype != np.float32):
            raise ValueError(f"weights must be float32 {list(values.shape)}, got {weights.dtype} {list(weights.shape)}")
        if column_scale is None:
            column_scale = np.ones(values.shape[1], np.float32)
        if column_scale.shape != values.shape[1:] or column_scale.dtype != np.float32:
            raise ValueError(
                f"column_scale must be float32 [{values.shape[1]}], got {column_scale.dtype} {list(column_scale.shape)}"
            )
        self.values = np.ascontiguousarray(values)
        self.weights = None if weights is None else np.ascontiguousarray(weights)
        self.column_scale = np.ascontiguousarray(column_scale)
        self.resources = Resources() if resources is None else resources

    @property
    def threads(self) -> int:
        """Threads to use."""
        return self.resources.threads

    @property
    def device(self) -> torch.device | None:
        """Where torch does what is heavy; None for the native solver."""
        return self.resources.device

    @property
    def count(self) -> int:
        """N."""
        return len(self.values)

    @property
    def columns(self) -> int:
        """K."""
        return len(self.column_scale)

    def take(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> WeightRows:
        """Some of the rows, or all in another order."""
        weights = None if self.weights is None else self.weights[rows]
        return WeightRows(self.values[rows], weights, self.column_scale, self.resources)

    def of(self, values: Float32) -> WeightRows:
        """The same with other values, float32 `[N, K]`."""
        return WeightRows(values, self.weights, self.column_scale, self.resources)

    def permuted(self, columns: npt.NDArray[np.int64]) -> WeightRows:
        """The rows with their columns in another order."""
        weights = None if self.weights is None else self.weights[:, columns]
        return WeightRows(self.values[:, columns], weights, self.column_scale[columns], self.resources)

    def native(self, run: slice) -> NativeRows:
        """The C structure of some consecutive rows."""
        values = self.values[run]
        weights = None if self.weights is None else self.weights[run].ctypes.data
        return NativeRows(values.ctypes.data, weights, self.column_scale.ctypes.data, len(values), self.columns)

    def runs(self, seconds: float, together: int = 1) -> Iterator[slice]:
        """Runs of rows that keep a call short, if a weight takes so many seconds of one thread.

        There are at least `together` rows for each thread, if there are as many.
        """
        count = self.threads * max(together, int(_CALL_SECONDS / (seconds * self.columns)))
        for start in range(0, self.count, count):
            yield slice(start, min(start + count, self.count))


def _call(name: str, rows: WeightRows, run: slice, *arguments: object) -> None:
    if not getattr(solver_library(), name)(ctypes.byref(rows.native(run)), *arguments):
        raise MemoryError(f"{name}: out of memory")


def _checked_bits(bits: UInt8, rows: int) -> tuple[UInt8, int]:
    """The widths as the solver reads them, and the entries of the largest codebook."""
    if bits.shape != (rows,) or bits.dtype != np.uint8 or bits.min() < 1 or bits.max() > most_bits():
        raise ValueError(f"bits must be uint8 [{rows}] from 1 to {most_bits()}")
    return np.ascontiguousarray(bits), 1 << int(bits.max())


def _checked_memory(memory: UInt8 | None, bits: UInt8, columns: int) -> UInt8 | None:
    """The memory as the solver reads it."""
    if memory is None:
        return None
    if memory.shape != bits.shape or memory.dtype != np.uint8 or memory.min() < 1 or memory.max() > _MOST_MEMORY:
        raise ValueError(f"memory must be uint8 [{len(bits)}] from 1 to {_MOST_MEMORY}")
    if (memory >= bits).any() or bits.max() > _MOST_WINDOW_BITS:
        raise ValueError(f"windows must have more bits than their memory, and at most {_MOST_WINDOW_BITS}")
    if columns % LANE:
        raise ValueError(f"columns of windows must be lanes of {LANE}, got {columns}")
    return np.ascontiguousarray(memory)


def _check_shape(name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(array.shape)}")


def window_kinds(bits: UInt8, memory: UInt8) -> Iterator[tuple[npt.NDArray[np.int64], int, int]]:
    """The rows that have windows of one width with one memory, int64, and these."""
    for b, m in np.unique(np.stack([bits, memory], axis=1), axis=0).tolist():
        yield np.flatnonzero((bits == b) & (memory == m)), b, m


def error_curves(rows: WeightRows, max_bits: int) -> Float64:
    """Least weighted squared error of each row with 2, 4, ... 2^max_bits free levels, float64 `[N, max_bits]`."""
    if not 1 <= max_bits <= most_bits():
        raise ValueError(f"max_bits must be from 1 to {most_bits()}, got {max_bits}")
    if rows.device is not None:
        from skim_export.quantize import torch_solver

        return torch_solver.error_curves(rows, max_bits)
    errors = np.empty((rows.count, max_bits), np.float64)
    for run in rows.runs(_SECONDS_PER_LEVEL * (1 << max_bits)):
        _call("skim_error_curves", rows, run, max_bits, rows.threads, errors[run])
    return errors


def kmeans(rows: WeightRows, bits: UInt8, points: int | None = None) -> tuple[Float32, Float32, UInt8]:
    """Optimal codebooks: exact weighted k-means of every row of `values / column_scale`.

    Args:
        rows: the rows.
        bits: width of each row, uint8 `[N]`.
        points: clusters begin at one of about so many places among the sorted weights of a row, which takes nearly the
            same error and a fraction of the time; None for any place, and the optimum, or for `POINTS` on a device.

    Returns:
        centroids, float32 `[N, 2^max(bits)]`, ascending; unused entries are 0;
        the weight that each carries, float32 of the same shape;
        codes, uint8 `[N, K]`.
    """
    bits, stride = _checked_bits(bits, rows.count)
    if rows.device is not None:
        from skim_export.quantize import torch_solver

        return torch_solver.kmeans(rows, bits, points)
    centroids = np.zeros((rows.count, stride), np.float32)
    mass = np.zeros((rows.count, stride), np.float32)
    codes = np.empty((rows.count, rows.columns), np.uint8)
    for run in rows.runs(_SECONDS_PER_LEVEL * stride):
        results = centroids[run], mass[run], codes[run]
        _call("skim_kmeans", rows, run, bits[run], stride, points or 0, rows.threads, *results)
    return centroids, mass, codes


def assign(rows: WeightRows, bits: UInt8, levels: Float32) -> tuple[UInt8, Float64]:
    """Codes of the nearest levels, uint8 `[N, K]`, and the weighted squared error of each row, float64 `[N]`.

    Args:
        rows: the rows.
        bits: width of each row, uint8 `[N]`.
        levels: float32 `[N, 2^max(bits)]`, the first 2^b of each row ascending.
    """
    bits, stride = _checked_bits(bits, rows.count)
    _check_shape("levels", levels, (rows.count, stride))
    codes = np.empty((rows.count, rows.columns), np.uint8)
    errors = np.empty(rows.count, np.float64)
    for run in rows.runs(_SECONDS_PER_LEVEL * stride):
        _call("skim_assign", rows, run, bits[run], levels[run], stride, rows.threads, codes[run], errors[run])
    return codes, errors


def assign_affine(
    rows: WeightRows, bits: UInt8, scale: Float32, offset: Float32
) -> tuple[UInt8, Float64, tuple[Float64, Float64]]:
    """Codes of the nearest affine levels `offset + scale * (code - 2^(b-1))`.

    Args:
        rows: the rows.
        bits: width of each row, uint8 `[N]`.
        scale: at least 0, float32 `[N]`.
        offset: float32 `[N]`.

    Returns:
        codes, uint8 `[N, K]`;
        the weighted squared error of each row, float64 `[N]`;
        the scale and the offset that are optimal for these codes, float64 `[N]` each.
    """
    bits, _ = _checked_bits(bits, rows.count)
    _check_shape("scale", scale, (rows.count,))
    _check_shape("offset", offset, (rows.count,))
    codes = np.empty((rows.count, rows.columns), np.uint8)
    errors, best_scale, best_offset = (np.empty(rows.count) for _ in range(3))
    for run in rows.runs(_SECONDS_PER_LEVEL):
        results = codes[run], errors[run], best_scale[run], best_offset[run]
        _call("skim_assign_affine", rows, run, bits[run], scale[run], offset[run], rows.threads, *results)
    return codes, errors, (best_scale, best_offset)


def refit(rows: WeightRows, bits: UInt8, codes: UInt8, centroids: Float32) -> tuple[Float32, Float64, Float64, Float64]:
    """With the codes held fixed: optimal centroids for this column scale, then the optimal column scale for those.

    Args:
        rows: the rows.
        bits: width of each row, uint8 `[N]`.
        codes: uint8 `[N, K]`.
        centroids: float32 `[N, 2^max(bits)]`; kept where no weight falls.

    Returns:
        the new centroids;
        the weighted squared error of each row with them, float64 `[N]`;
        numerator and denominator of the best column scale, float64 `[K]` each.
    """
    bits, stride = _checked_bits(bits, rows.count)
    _check_shape("centroids", centroids, (rows.count, stride))
    _check_shape("codes", codes, (rows.count, rows.columns))
    centroids = np.ascontiguousarray(centroids).copy()
    numerator, denominator = np.empty(rows.columns), np.empty(rows.columns)
    errors = np.empty(rows.count, np.float64)
    everything = slice(0, rows.count)
    _call("skim_refit", rows, everything, bits, codes, stride, rows.threads, centroids, numerator, denominator, errors)
    return centroids, errors, numerator, denominator


def feedback(
    rows: WeightRows, factor: Float32 | None, bits: UInt8, levels: Float32, memory: UInt8 | None = None
) -> UInt8:
    """Codes chosen column after column, the error of each made up for in those to come (GPTQ, arXiv 2210.17323).

    With a memory, codes are windows: columns 8 i to 8 i + 7 are a lane, and their windows are chosen together.

    Args:
        rows: the rows.
        factor: upper Cholesky factor of the inverse of the columns' correlation, float32 `[K, K]`; see `refine`. None,
            with a memory, for columns that do not go together.
        bits: width of each row, uint8 `[N]`; that of a window with its memory.
        levels: float32 `[N, 2^max(bits)]`, the first 2^b of each row ascending; by window.
        memory: bits of each row's windows that are those of the column before, uint8 `[N]`, 1..3.

    Returns:
        codes, or windows, uint8 `[N, K]`.
    """
    bits, stride = _checked_bits(bits, rows.count)
    memory = _checked_memory(memory, bits, rows.columns)
    if factor is None and memory is None:
        raise ValueError("factor must be given, but for windows")
    if factor is not None:
        _check_shape("factor", factor, (rows.columns, rows.columns))
    _check_shape("levels", levels, (rows.count, stride))
    if rows.device is not None:
        from skim_export.quantize import torch_solver

        return torch_solver.feedback(rows, factor, bits, levels, memory)
    codes = np.empty((rows.count, rows.columns), np.uint8)
    for run in rows.runs(_SECONDS_PER_PASS * rows.columns / 2, rows_together()):
        matrix = None if factor is None else factor.ctypes.data
        remembered = None if memory is None else memory[run].ctypes.data
        _call("skim_feedback", rows, run, matrix, bits[run], remembered, levels[run], stride, rows.threads, codes[run])
    return codes


def refine(
    rows: WeightRows,
    correlation: Float32,
    bits: UInt8,
    levels: Float32,
    codes: UInt8,
    *,
    rounds: int,
    sweeps: int,
    fit: bool = True,
    memory: UInt8 | None = None,
) -> tuple[Float32, UInt8, Float64]:
    """Improve levels and codes under the full objective of each row, in turn; the error never rises.

    That is d^T S^1/2 C S^1/2 d for the error d [K] of a row, with S the diagonal of the weights of that row and
    C the correlation of the columns. The optimal levels for given codes have a closed form; the codes are improved by
    coordinate descent (LNQ in GuidedQuant, arXiv 2505.07004, section 4; GANQ, arXiv 2501.12956), windows a lane at a
    time (see `feedback`).

    Args:
        rows: the rows.
        correlation: C, float32 `[K, K]`, symmetric, positive definite, 1 on the diagonal.
        bits: width of each row, uint8 `[N]`; that of a window with its memory.
        levels: float32 `[N, 2^max(bits)]`, the first 2^b of each row ascending; by window.
        codes: or windows, uint8 `[N, K]`.
        rounds: alternations between levels and codes.
        sweeps: over the codes, at most, in each round.
        fit: whether the levels may change.
        memory: bits of each row's windows that are those of the column before, uint8 `[N]`, 1..3.

    Returns:
        levels, codes, and the error of each row, float64 `[N]`.
    """
    bits, stride = _checked_bits(bits, rows.count)
    memory = _checked_memory(memory, bits, rows.columns)
    _check_shape("correlation", correlation, (rows.columns, rows.columns))
    _check_shape("levels", levels, (rows.count, stride))
    _check_shape("codes", codes, (rows.count, rows.columns))
    if rows.device is not None:
        from skim_export.quantize import torch_solver

        return torch_solver.refine(
            rows, correlation, bits, levels, codes, rounds=rounds, sweeps=sweeps, fit=fit, memory=memory
        )  # fmt: skip
    levels, codes = np.ascontiguousarray(levels).copy(), np.ascontiguousarray(codes).copy()
    errors = np.empty(rows.count, np.float64)
    for run in rows.runs(_SECONDS_PER_PASS * rows.columns * 2 * rounds, rows_together()):
        _call(
            "skim_refine", rows, run, correlation, bits[run], None if memory is None else memory[run].ctypes.data,
            stride, rounds, sweeps, fit, rows.threads, levels[run], codes[run], errors[run],
        )  # fmt: skip
    return levels, codes, errors
