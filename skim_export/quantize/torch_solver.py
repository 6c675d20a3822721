"""The heavy part of the solver in torch, for layers with a device: what `solver.py` hands over.

It minimises what the native solver does, with two differences: clusters begin at one of about `POINTS` places unless
another number is asked for, and sums are taken in an order of torch's choice. So the last digits of a row, and where
two codes are about as good its codes, depend on the device and on how many rows it is worked on with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from skim_export.quantize import torch_kmeans, torch_refine
from skim_export.quantize.torch_kmeans import SortedRows

if TYPE_CHECKING:
    from skim_export.quantize.solver import Layer

__all__ = ["POINTS", "error_curves", "feedback", "inverse_factor", "kmeans", "refine"]

POINTS = 1024  # places among the sorted weights of a row where a cluster may begin
_KMEANS_BYTES = 1 << 29  # memory for rows that are clustered together

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]


def error_curves(layer: Layer, max_bits: int) -> Float64:
    """See `solver.error_curves`."""
    errors = np.empty((layer.rows, max_bits))
    for rows, part in _sorted_rows(layer, np.arange(layer.rows), POINTS, clusters=0):
        errors[rows] = torch_kmeans.error_curves(part, max_bits).cpu().numpy()
    return errors


def kmeans(layer: Layer, bits: UInt8, points: int | None) -> tuple[Float32, Float32, UInt8]:
    """See `solver.kmeans`; None for `POINTS`."""
    stride = 1 << int(bits.max())
    centroids, mass = np.zeros((layer.rows, stride), np.float32), np.zeros((layer.rows, stride), np.float32)
    codes = np.empty((layer.rows, layer.columns), np.uint8)
    for width in np.unique(bits).tolist():
        count = 1 << width
        for rows, part in _sorted_rows(layer, np.flatnonzero(bits == width), points or POINTS, clusters=count):
            found = torch_kmeans.cluster(part, count)
            centroids[rows, :count], mass[rows, :count], codes[rows] = (x.cpu().numpy() for x in found)
    return centroids, mass, codes


def feedback(layer: Layer, factor: Float32, bits: UInt8, levels: Float32) -> UInt8:
    """See `solver.feedback`."""
    target, unit = _scaled_rows(layer)
    codes = torch_refine.feedback(target, unit, _moved(factor, layer), _ended(levels, bits, layer))
    return _codes(codes)


def refine(
    layer: Layer,
    correlation: Float32,
    bits: UInt8,
    levels: Float32,
    codes: UInt8,
    *,
    rounds: int,
    sweeps: int,
    fit: bool,
) -> tuple[Float32, UInt8, Float64]:
    """See `solver.refine`."""
    target, unit = _scaled_rows(layer)
    widths = [(1 << b, _moved(np.flatnonzero(bits == b), layer)) for b in np.unique(bits).tolist()]
    found, found_codes, errors = torch_refine.refine(
        target,
        unit,
        _moved(correlation, layer),
        _ended(levels, bits, layer),
        _moved(codes, layer).T.long(),
        widths=widths,
        rounds=rounds,
        sweeps=sweeps,
        fit=fit,
    )
    refined = np.where(_used(levels, bits), found.cpu().numpy(), levels)
    return refined, _codes(found_codes), errors.cpu().numpy()


def inverse_factor(correlation: Float32, device: torch.device) -> Float32:
    """Upper Cholesky factor of the inverse of a correlation, float32 `[K, K]`."""
    factor: Float32 = torch_refine.inverse_factor(torch.from_numpy(correlation).to(device)).contiguous().cpu().numpy()
    return factor


def _moved(array: npt.NDArray[np.generic], layer: Layer) -> torch.Tensor:
    return torch.from_numpy(array).to(layer.device)


def _sorted_rows(layer: Layer, rows: Index, points: int, *, clusters: int) -> Iterator[tuple[Index, SortedRows]]:
    """Some rows in runs that fit the memory; `clusters` splits of each are kept."""
    scale = _moved(layer.column_scale, layer)
    size = max(1, _KMEANS_BYTES // torch_kmeans.row_bytes(layer.columns, points, clusters))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        weights = None if layer.weights is None else _moved(layer.weights[part], layer)
        yield part, SortedRows.of(_moved(layer.values[part], layer), weights, scale, points)


def _scaled_rows(layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    weights = None if layer.weights is None else _moved(layer.weights, layer)
    return torch_refine.scaled_rows(_moved(layer.values, layer), weights, _moved(layer.column_scale, layer))


def _used(levels: Float32, bits: UInt8) -> npt.NDArray[np.bool_]:
    """Which entries are levels of their row, bool `[N, 2^max(bits)]`."""
    used: npt.NDArray[np.bool_] = np.arange(levels.shape[1]) < (1 << bits.astype(np.int64))[:, None]
    return used


def _ended(levels: Float32, bits: UInt8, layer: Layer) -> torch.Tensor:
    """The levels on the device, infinite where a row has none."""
    return _moved(np.where(_used(levels, bits), levels, np.float32(np.inf)), layer)


def _codes(codes: torch.Tensor) -> UInt8:
    """From `[K, N]` on the device to uint8 `[N, K]`."""
    result: UInt8 = codes.T.to(torch.uint8).contiguous().cpu().numpy()
    return result
