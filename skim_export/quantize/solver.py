"""The solver: weighted k-means, nearest levels, weighted means, error feedback and refinement over the rows of a layer.

A layer is W `[N, K]` with weights of the squared errors `[N, K]` (None: all 1) and a positive scale per column `[K]`;
its value k is stored as `level * column_scale[k]`. Results do not depend on the number of threads.

What is heavy (`error_curves`, `kmeans`, `feedback`, `refine`) is done in torch where the layer has a device, see
`torch_solver.py`. All else is native: `assign`, `assign_affine` and `refit` look at a weight once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from skim_export.work.resources import Resources
from skim_runtime.installed import installed_file

if TYPE_CHECKING:
    import torch

__all__ = [
    "MAX_BITS",
    "Layer",
    "assign",
    "assign_affine",
    "error_curves",
    "feedback",
    "kmeans",
    "refine",
    "refine_bytes",
    "refit",
]

MAX_BITS = 8
_CHUNK_SECONDS = 0.25  # about as long as one call may take: Ctrl-C is seen between calls
_SECONDS_PER_LEVEL = 2e-8  # of the dynamic program, for one weight and one level
_SECONDS_PER_PASS = 4e-11  # of one thread, to multiply a weight with one column's entry of a correlation
_ROWS_TOGETHER = 128  # that a thread refines at best: kMostRows in native/row_group.cpp
_REFINE_BYTES = 128 << 20  # of working memory, about, that it takes for them at most: kMostBytes there

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]


class _NativeLayer(ctypes.Structure):
    _fields_ = (
        ("values", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("column_scale", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int32),
    )


class Layer:
    """What the solver is given; the arrays are checked once and kept alive.

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
    def rows(self) -> int:
        """N."""
        return len(self.values)

    @property
    def columns(self) -> int:
        """K."""
        return len(self.column_scale)

    def take(self, rows: npt.NDArray[np.bool_]) -> Layer:
        """A layer of some of the rows."""
        weights = None if self.weights is None else self.weights[rows]
        return Layer(self.values[rows], weights, self.column_scale, self.resources)

    def permuted(self, columns: npt.NDArray[np.int64]) -> Layer:
        """The layer with its columns in another order."""
        weights = None if self.weights is None else self.weights[:, columns]
        return Layer(self.values[:, columns], weights, self.column_scale[columns], self.resources)

    def native(self, rows: slice) -> _NativeLayer:
        """The C structure of some consecutive rows."""
        values = self.values[rows]
        weights = None if self.weights is None else self.weights[rows].ctypes.data
        return _NativeLayer(values.ctypes.data, weights, self.column_scale.ctypes.data, len(values), self.columns)

    def chunks(self, seconds: float, together: int = 1) -> Iterator[slice]:
        """Runs of rows that keep a call short, if a weight takes so many seconds of one thread.

        There are at least `together` rows for each thread, if the layer has as many.
        """
        rows = self.threads * max(together, int(_CHUNK_SECONDS / (seconds * self.columns)))
        for start in range(0, self.rows, rows):
            yield slice(start, min(start + rows, self.rows))


def _array(dtype: type, ndim: int) -> type:
    return np.ctypeslib.ndpointer(dtype, ndim=ndim, flags="C_CONTIGUOUS")


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(installed_file("skim_export.quantize", "libskim_solver.so")))
    layer, number, flag = ctypes.POINTER(_NativeLayer), ctypes.c_int32, ctypes.c_bool
    floats, doubles, vector = _array(np.float32, 2), _array(np.float64, 2), _array(np.float64, 1)
    bits, codes, singles = _array(np.uint8, 1), _array(np.uint8, 2), _array(np.float32, 1)
    signatures = {
        "skim_error_curves": (layer, number, number, doubles),
        "skim_kmeans": (layer, bits, number, number, number, floats, floats, codes),
        "skim_assign": (layer, bits, floats, number, number, codes, vector),
        "skim_assign_affine": (layer, bits, singles, singles, number, codes, vector, vector, vector),
        "skim_refit": (layer, bits, codes, number, number, floats, vector, vector, vector),
        "skim_feedback": (layer, floats, bits, floats, number, number, codes),
        "skim_refine": (layer, floats, bits, number, number, number, flag, number, floats, codes, vector),
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = ctypes.c_bool
    return library


def _call(name: str, layer: Layer, rows: slice, *arguments: object) -> None:
    if not getattr(_library(), name)(ctypes.byref(layer.native(rows)), *arguments):
        raise MemoryError(f"{name}: out of memory")


def _checked_bits(bits: UInt8, rows: int) -> tuple[UInt8, int]:
    """The widths as the solver reads them, and the entries of the largest codebook."""
    if bits.shape != (rows,) or bits.dtype != np.uint8 or bits.min() < 1 or bits.max() > MAX_BITS:
        raise ValueError(f"bits must be uint8 [{rows}] from 1 to {MAX_BITS}")
    return np.ascontiguousarray(bits), 1 << int(bits.max())


def _check_shape(name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(array.shape)}")


def error_curves(layer: Layer, max_bits: int) -> Float64:
    """Least weighted squared error of each row with 2, 4, ... 2^max_bits free levels, float64 `[N, max_bits]`."""
    if not 1 <= max_bits <= MAX_BITS:
        raise ValueError(f"max_bits must be from 1 to {MAX_BITS}, got {max_bits}")
    if layer.device is not None:
        from skim_export.quantize import torch_solver

        return torch_solver.error_curves(layer, max_bits)
    errors = np.empty((layer.rows, max_bits), np.float64)
    for rows in layer.chunks(_SECONDS_PER_LEVEL * (1 << max_bits)):
        _call("skim_error_curves", layer, rows, max_bits, layer.threads, errors[rows])
    return errors


def kmeans(layer: Layer, bits: UInt8, points: int | None = None) -> tuple[Float32, Float32, UInt8]:
    """Optimal codebooks: exact weighted k-means of every row of `values / column_scale`.

    Args:
        layer: the layer.
        bits: width of each row, uint8 `[N]`.
        points: clusters begin at one of about so many places among the sorted weights of a row, which takes nearly the
            same error and a fraction of the time; None for any place, and the optimum, or for 1024 on a device.

    Returns:
        centroids, float32 `[N, 2^max(bits)]`, ascending; unused entries are 0;
        the weight that each carries, float32 of the same shape;
        codes, uint8 `[N, K]`.
    """
    bits, stride = _checked_bits(bits, layer.rows)
    if layer.device is not None:
        from skim_export.quantize import torch_solver

        return torch_solver.kmeans(layer, bits, points)
    centroids = np.zeros((layer.rows, stride), np.float32)
    mass = np.zeros((layer.rows, stride), np.float32)
    codes = np.empty((layer.rows, layer.columns), np.uint8)
    for rows in layer.chunks(_SECONDS_PER_LEVEL * stride):
        results = centroids[rows], mass[rows], codes[rows]
        _call("skim_kmeans", layer, rows, bits[rows], stride, points or 0, layer.threads, *results)
    return centroids, mass, codes


def assign(layer: Layer, bits: UInt8, levels: Float32) -> tuple[UInt8, Float64]:
    """Codes of the nearest levels, uint8 `[N, K]`, and the weighted squared error of each row, float64 `[N]`.

    Args:
        layer: the layer.
        bits: width of each row, uint8 `[N]`.
        levels: float32 `[N, 2^max(bits)]`, the first 2^b of each row ascending.
    """
    bits, stride = _checked_bits(bits, layer.rows)
    _check_shape("levels", levels, (layer.rows, stride))
    codes = np.empty((layer.rows, layer.columns), np.uint8)
    errors = np.empty(layer.rows, np.float64)
    for rows in layer.chunks(_SECONDS_PER_LEVEL * stride):
        _call(
            "skim_assign",
            layer,
            rows,
            bits[rows],
            levels[rows],
            stride,
            layer.threads,
            codes[rows],
            errors[rows],
        )
    return codes, errors


def assign_affine(
    layer: Layer, bits: UInt8, scale: Float32, offset: Float32
) -> tuple[UInt8, Float64, tuple[Float64, Float64]]:
    """Codes of the nearest affine levels `offset + scale * (code - 2^(b-1))`.

    Args:
        layer: the layer.
        bits: width of each row, uint8 `[N]`.
        scale: at least 0, float32 `[N]`.
        offset: float32 `[N]`.

    Returns:
        codes, uint8 `[N, K]`;
        the weighted squared error of each row, float64 `[N]`;
        the scale and the offset that are optimal for these codes, float64 `[N]` each.
    """
    bits, _ = _checked_bits(bits, layer.rows)
    _check_shape("scale", scale, (layer.rows,))
    _check_shape("offset", offset, (layer.rows,))
    codes = np.empty((layer.rows, layer.columns), np.uint8)
    errors, best_scale, best_offset = (np.empty(layer.rows) for _ in range(3))
    for rows in layer.chunks(_SECONDS_PER_LEVEL):
        results = codes[rows], errors[rows], best_scale[rows], best_offset[rows]
        _call("skim_assign_affine", layer, rows, bits[rows], scale[rows], offset[rows], layer.threads, *results)
    return codes, errors, (best_scale, best_offset)


def refit(layer: Layer, bits: UInt8, codes: UInt8, centroids: Float32) -> tuple[Float32, Float64, Float64, Float64]:
    """With the codes held fixed: optimal centroids for this column scale, then the optimal column scale for those.

    Args:
        layer: the layer.
        bits: width of each row, uint8 `[N]`.
        codes: uint8 `[N, K]`.
        centroids: float32 `[N, 2^max(bits)]`; kept where no weight falls.

    Returns:
        the new centroids;
        the weighted squared error of each row with them, float64 `[N]`;
        numerator and denominator of the best column scale, float64 `[K]` each.
    """
    bits, stride = _checked_bits(bits, layer.rows)
    _check_shape("centroids", centroids, (layer.rows, stride))
    _check_shape("codes", codes, (layer.rows, layer.columns))
    centroids = np.ascontiguousarray(centroids).copy()
    numerator, denominator = np.empty(layer.columns), np.empty(layer.columns)
    errors = np.empty(layer.rows, np.float64)
    everything = slice(0, layer.rows)
    _call(
        "skim_refit",
        layer,
        everything,
        bits,
        codes,
        stride,
        layer.threads,
        centroids,
        numerator,
        denominator,
        errors,
    )
    return centroids, errors, numerator, denominator


def feedback(layer: Layer, factor: Float32, bits: UInt8, levels: Float32) -> UInt8:
    """Codes chosen column after column, the error of each made up for in those to come (GPTQ, arXiv 2210.17323).

    Args:
        layer: the layer.
        factor: upper Cholesky factor of the inverse of the columns' correlation, float32 `[K, K]`; see `refine`.
        bits: width of each row, uint8 `[N]`.
        levels: float32 `[N, 2^max(bits)]`, the first 2^b of each row ascending.

    Returns:
        codes, uint8 `[N, K]`.
    """
    bits, stride = _checked_bits(bits, layer.rows)
    _check_shape("factor", factor, (layer.columns, layer.columns))
    _check_shape("levels", levels, (layer.rows, stride))
    if layer.device is not None:
        from skim_export.quantize import torch_solver

        return torch_solver.feedback(layer, factor, bits, levels)
    codes = np.empty((layer.rows, layer.columns), np.uint8)
    for rows in layer.chunks(_SECONDS_PER_PASS * layer.columns / 2, _ROWS_TOGETHER):
        _call("skim_feedback", layer, rows, factor, bits[rows], levels[rows], stride, layer.threads, codes[rows])
    return codes


def refine(
    layer: Layer,
    correlation: Float32,
    bits: UInt8,
    levels: Float32,
    codes: UInt8,
    *,
    rounds: int,
    sweeps: int,
    fit: bool = True,
) -> tuple[Float32, UInt8, Float64]:
    """Improve levels and codes under the full objective of each row, in turn; the error never rises.

    That is d^T S^1/2 C S^1/2 d for the error d [K] of a row, with S the diagonal of the layer's weights of that row and
    C the correlation of the columns. The optimal levels for given codes have a closed form; the codes are improved by
    coordinate descent (LNQ in GuidedQuant, arXiv 2505.07004, section 4; GANQ, arXiv 2501.12956).

    Args:
        layer: the layer.
        correlation: C, float32 `[K, K]`, symmetric, positive definite, 1 on the diagonal.
        bits: width of each row, uint8 `[N]`.
        levels: float32 `[N, 2^max(bits)]`, the first 2^b of each row ascending.
        codes: uint8 `[N, K]`.
        rounds: alternations between levels and codes.
        sweeps: over the codes, at most, in each round.
        fit: whether the levels may change.

    Returns:
        levels, codes, and the error of each row, float64 `[N]`.
    """
    bits, stride = _checked_bits(bits, layer.rows)
    _check_shape("correlation", correlation, (layer.columns, layer.columns))
    _check_shape("levels", levels, (layer.rows, stride))
    _check_shape("codes", codes, (layer.rows, layer.columns))
    if layer.device is not None:
        from skim_export.quantize import torch_solver

        return torch_solver.refine(
            layer, correlation, bits, levels, codes, rounds=rounds, sweeps=sweeps, fit=fit
        )  # fmt: skip
    levels, codes = np.ascontiguousarray(levels).copy(), np.ascontiguousarray(codes).copy()
    errors = np.empty(layer.rows, np.float64)
    for rows in layer.chunks(_SECONDS_PER_PASS * layer.columns * 2 * rounds, _ROWS_TOGETHER):
        _call(
            "skim_refine", layer, rows, correlation, bits[rows], stride, rounds, sweeps, fit, layer.threads,
            levels[rows], codes[rows], errors[rows],
        )  # fmt: skip
    return levels, codes, errors


def refine_bytes(columns: int, levels: int, threads: int) -> int:
    """What `refine` takes of the memory beside its arguments and results, for rows of so many levels."""
    row = columns * (4 * (levels + 4) + 10)  # products, four vectors, and terms; see native/row_group.cpp
    return threads * min(_ROWS_TOGETHER * row, _REFINE_BYTES)
