"""The heavy part of the solver in torch, for rows with a device: what `solver.py` hands over.

It minimises what the native solver does, with two differences: clusters begin at one of about `POINTS` places of
`solver.py` unless another number is asked for, and sums are taken in an order of torch's choice. So the last digits of
a row, and where two codes are about as good its codes, depend on the device and on how many rows it is worked on with.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from skim_export.quantize import torch_kmeans, torch_refine, torch_windows
from skim_export.quantize.solver import POINTS, WeightRows, window_kinds
from skim_export.quantize.torch_kmeans import SortedRows
from skim_export.quantize.torch_windows import Lanes

__all__ = ["error_curves", "feedback", "inverse_factor", "kmeans", "refine"]

_KMEANS_BYTES = 1 << 29  # memory for rows that are clustered together

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]


def error_curves(rows: WeightRows, max_bits: int) -> Float64:
    """See `solver.error_curves`."""
    errors = np.empty((rows.count, max_bits))
    for some, part in _sorted_rows(rows, np.arange(rows.count), POINTS, clusters=0):
        errors[some] = torch_kmeans.error_curves(part, max_bits).cpu().numpy()
    return errors


def kmeans(rows: WeightRows, bits: UInt8, points: int | None) -> tuple[Float32, Float32, UInt8]:
    """See `solver.kmeans`; None for `POINTS`."""
    stride = 1 << int(bits.max())
    centroids, mass = np.zeros((rows.count, stride), np.float32), np.zeros((rows.count, stride), np.float32)
    codes = np.empty((rows.count, rows.columns), np.uint8)
    for width in np.unique(bits).tolist():
        count = 1 << width
        for some, part in _sorted_rows(rows, np.flatnonzero(bits == width), points or POINTS, clusters=count):
            found = torch_kmeans.cluster(part, count)
            centroids[some, :count], mass[some, :count], codes[some] = (x.cpu().numpy() for x in found)
    return centroids, mass, codes


def feedback(
    rows: WeightRows, factor: Float32 | None, bits: UInt8, levels: Float32, memory: UInt8 | None = None
) -> UInt8:
    """See `solver.feedback`."""
    target, unit = _scaled_rows(rows)
    if memory is not None:
        windows = torch.empty_like(target, dtype=torch.int64)
        for some, lanes in _lanes(rows, bits, levels, memory):
            if factor is None:
                windows[:, some] = torch_windows.feedback_without_coupling(lanes, target[:, some], unit[:, some])
            else:
                part = target[:, some].contiguous()
                windows[:, some] = torch_windows.feedback(lanes, part, unit[:, some], _moved(factor, rows))
        return _codes(windows)
    assert factor is not None  # as the caller sees to
    codes = torch_refine.feedback(target, unit, _moved(factor, rows), _ended(levels, bits, rows))
    return _codes(codes)


def refine(
    rows: WeightRows,
    correlation: Float32,
    bits: UInt8,
    levels: Float32,
    codes: UInt8,
    *,
    rounds: int,
    sweeps: int,
    fit: bool,
    memory: UInt8 | None = None,
) -> tuple[Float32, UInt8, Float64]:
    """See `solver.refine`."""
    target, unit = _scaled_rows(rows)
    if memory is not None:
        return _refine_windows(
            rows, correlation, bits, levels, codes, memory, rounds=rounds, sweeps=sweeps, fit=fit
        )  # fmt: skip
    widths = [(1 << b, _moved(np.flatnonzero(bits == b), rows)) for b in np.unique(bits).tolist()]
    found, found_codes, errors = torch_refine.refine(
        target,
        unit,
        _moved(correlation, rows),
        _ended(levels, bits, rows),
        _moved(codes, rows).T.long(),
        widths=widths,
        rounds=rounds,
        sweeps=sweeps,
        fit=fit,
    )
    refined = np.where(_used(levels, bits), found.cpu().numpy(), levels)
    return refined, _codes(found_codes), errors.cpu().numpy()


def _refine_windows(
    rows: WeightRows,
    correlation: Float32,
    bits: UInt8,
    levels: Float32,
    codes: UInt8,
    memory: UInt8,
    *,
    rounds: int,
    sweeps: int,
    fit: bool,
) -> tuple[Float32, UInt8, Float64]:
    target, unit = _scaled_rows(rows)
    windows, coupling = _moved(codes, rows).T.long(), _moved(correlation, rows)
    refined, errors = levels.copy(), np.empty(rows.count)
    for some, lanes in _lanes(rows, bits, levels, memory):
        own, found, lost = torch_windows.refine(
            lanes,
            target[:, some],
            unit[:, some],
            coupling,
            windows[:, some],
            rounds=rounds,
            sweeps=sweeps,
            fit=fit,
        )
        of_kind = some.cpu().numpy()
        refined[of_kind, : len(own)] = own.T.cpu().numpy()
        errors[of_kind] = lost.cpu().numpy()
        windows[:, some] = found
    return refined, _codes(windows), errors


def _lanes(rows: WeightRows, bits: UInt8, levels: Float32, memory: UInt8) -> Iterator[tuple[torch.Tensor, Lanes]]:
    """The rows of each width and memory, int64, and their trellis."""
    for some, b, m in window_kinds(bits, memory):
        of_kind = _moved(np.ascontiguousarray(levels[some, : 1 << b].T), rows)
        yield _moved(some, rows), Lanes(b - m, m, of_kind)


def inverse_factor(correlation: Float32, device: torch.device) -> Float32:
    """Upper Cholesky factor of the inverse of a correlation, float32 `[K, K]`."""
    factor: Float32 = torch_refine.inverse_factor(torch.from_numpy(correlation).to(device)).contiguous().cpu().numpy()
    return factor


def _moved(array: npt.NDArray[np.generic], rows: WeightRows) -> torch.Tensor:
    return torch.from_numpy(array).to(rows.device)


def _sorted_rows(rows: WeightRows, chosen: Index, points: int, *, clusters: int) -> Iterator[tuple[Index, SortedRows]]:
    """Some rows in runs that fit the memory; `clusters` splits of each are kept."""
    scale = _moved(rows.column_scale, rows)
    size = max(1, _KMEANS_BYTES // torch_kmeans.row_bytes(rows.columns, points, clusters))
    for start in range(0, len(chosen), size):
        part = chosen[start : start + size]
        weights = None if rows.weights is None else _moved(rows.weights[part], rows)
        yield part, SortedRows.of(_moved(rows.values[part], rows), weights, scale, points)


def _scaled_rows(rows: WeightRows) -> tuple[torch.Tensor, torch.Tensor]:
    weights = None if rows.weights is None else _moved(rows.weights, rows)
    return torch_refine.scaled_rows(_moved(rows.values, rows), weights, _moved(rows.column_scale, rows))


def _used(levels: Float32, bits: UInt8) -> npt.NDArray[np.bool_]:
    """Which entries are levels of their row, bool `[N, 2^max(bits)]`."""
    used: npt.NDArray[np.bool_] = np.arange(levels.shape[1]) < (1 << bits.astype(np.int64))[:, None]
    return used


def _ended(levels: Float32, bits: UInt8, rows: WeightRows) -> torch.Tensor:
    """The levels on the device, infinite where a row has none."""
    return _moved(np.where(_used(levels, bits), levels, np.float32(np.inf)), rows)


def _codes(codes: torch.Tensor) -> UInt8:
    """From `[K, N]` on the device to uint8 `[N, K]`."""
    result: UInt8 = codes.T.to(torch.uint8).contiguous().cpu().numpy()
    return result
