"""How rows whose columns are settled get levels and codes: one class for each kind of levels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from skim_export.packed import CodebookType, RowLevels, level_bytes
from skim_export.quantize.levels import fit_affine, fit_tables, range_affine
from skim_export.quantize.native_library import most_bits
from skim_export.quantize.refinement import Coupling, feed_back, refine_tables
from skim_export.quantize.solver import WeightRows, error_curves, refine
from skim_export.quantize.windows import WINDOW_GAINS, refine_windows, worthwhile_memory

__all__ = [
    "AFFINE_BITS",
    "MOST_FREE_LEVELS",
    "FittedRows",
    "FreeLevels",
    "LevelFit",
    "RangeLevels",
    "WorthwhileLevels",
    "even_levels_pay",
    "merge_fits",
]

Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]

FittedRows = tuple[UInt8, RowLevels, Float64]
"""Codes, uint8 `[R, K]`; levels; error of each row as stored, float64 `[R]`."""

_Fit = Callable[[WeightRows, UInt8], FittedRows]

AFFINE_BITS = (
    7  # from this width on a free codebook gains next to nothing over even levels and costs ten times the time
)
MOST_FREE_LEVELS = 1 << (AFFINE_BITS - 1)  # of a row

# What free levels are worth beside even ones, in bits a weight: log4 of the ratio of the least squared errors for a
# normal distribution (Max, "Quantizing for minimum distortion", IRE Transactions on Information Theory, 1960).
FREE_LEVELS_GAIN = {1: 0.0, 2: 0.01, 3: 0.06, 4: 0.14, 5: 0.24, 6: 0.35}


class LevelFit(ABC):
    """How rows get levels and codes; what becomes of a row does not depend on the others."""

    @property
    @abstractmethod
    def refined_bits(self) -> int:
        """The widest rows that see the correlation of their columns have so many bits."""

    @abstractmethod
    def even(self, bits: int, columns: int, codebook: CodebookType) -> bool:
        """Whether rows of so many bits and columns get even levels, which are stored as a scale and an offset."""

    def memory(self, bits: int, columns: int) -> int:
        """The memory that windows of rows of so many bits and columns get; 0 if levels are those of the codes."""
        return 0

    def level_bytes(self, bits: int, columns: int, codebook: CodebookType) -> int:
        """Bytes that the levels of such a row take."""
        return level_bytes(bits, codebook, self.even(bits, columns, codebook), self.memory(bits, columns))

    def in_lanes(self, columns: int) -> bool:
        """Whether columns are to go together lane after lane: some width has windows."""
        return any(self.memory(bits, columns) for bits in range(1, AFFINE_BITS))

    @abstractmethod
    def fit(self, rows: WeightRows, bits: UInt8, codebook: CodebookType, coupling: Coupling | None) -> FittedRows:
        """Quantize rows.

        Args:
            rows: R rows of W, weights of the squared errors and column scale.
            bits: width of each row, uint8 `[R]`.
            codebook: type of codebook entries.
            coupling: of the columns; None if the errors of a row's weights are not seen together.
        """

    @abstractmethod
    def width_errors(self, rows: WeightRows, widths: Sequence[int]) -> Float64:
        """About the error of each row at each width without a coupling, float64 `[R, widths]`, for bit allocation."""


@dataclass(frozen=True)
class FreeLevels(LevelFit):
    """Free codebooks by k-means for rows below `AFFINE_BITS`; wider ones get even levels, fitted to the same objective.

    Attributes:
        points: of the clustering, see `skim_export.quantize.solver.kmeans`; None for the optimum.
        windows: whether codes of rows that see the coupling of their columns get windows where these are worth what
            they take.
    """

    points: int | None = None
    windows: bool = False

    @property
    def refined_bits(self) -> int:
        """See `LevelFit`."""
        return AFFINE_BITS - 1

    def even(self, bits: int, columns: int, codebook: CodebookType) -> bool:
        """See `LevelFit`."""
        return bits >= AFFINE_BITS

    def memory(self, bits: int, columns: int) -> int:
        """See `LevelFit`."""
        return worthwhile_memory(bits, columns) if self.windows else 0

    def fit(self, rows: WeightRows, bits: UInt8, codebook: CodebookType, coupling: Coupling | None) -> FittedRows:
        """See `LevelFit`; the columns' coupling is seen where levels are free."""
        even = np.isin(bits, [b for b in np.unique(bits).tolist() if self.even(b, rows.columns, codebook)])
        return _in_parts(rows, bits, even, lambda some, own: self._fit_free(some, own, codebook, coupling), fit_affine)

    def width_errors(self, rows: WeightRows, widths: Sequence[int]) -> Float64:
        """See `LevelFit`; those of free levels are before their entries are rounded."""
        free = [b for b in widths if b < AFFINE_BITS]
        curves = error_curves(rows, max(free)) if free else np.zeros((rows.count, 0))
        columns = []
        for b in widths:
            columns.append(curves[:, b - 1] if b in free else fit_affine(rows, np.full(rows.count, b, np.uint8))[2])
            if memory := self.memory(b, rows.columns):
                columns[-1] = columns[-1] * 4.0 ** -WINDOW_GAINS[b, memory]
        return np.stack(columns, axis=1)

    def _fit_free(self, rows: WeightRows, bits: UInt8, codebook: CodebookType, coupling: Coupling | None) -> FittedRows:
        if coupling is None:
            return fit_tables(rows, bits, codebook, self.points)
        if not coupling.lanes:
            return refine_tables(rows, coupling, bits, codebook)
        order = coupling.order
        lanes, inner = rows.permuted(order), replace(coupling, order=np.arange(len(order)), lanes=False)
        memory = np.array([0, *(self.memory(b, rows.columns) for b in range(1, AFFINE_BITS))], np.uint8)  # by width
        ordered, levels, errors = _in_parts(
            lanes,
            bits,
            memory[bits] == 0,
            lambda some, own: refine_windows(some, inner, own, memory[own], codebook),
            lambda some, own: refine_tables(some, inner, own, codebook),
        )
        codes = np.empty_like(ordered)
        codes[:, order] = ordered
        return codes, levels, errors


@dataclass(frozen=True)
class WorthwhileLevels(FreeLevels):
    """Free codebooks where they earn what they take, even levels elsewhere; for weights that all matter alike."""

    def even(self, bits: int, columns: int, codebook: CodebookType) -> bool:
        """See `even_levels_pay`."""
        return even_levels_pay(bits, columns, codebook)


@dataclass(frozen=True)
class RangeLevels(LevelFit):
    """Even levels from the smallest to the largest weight of a row."""

    @property
    def refined_bits(self) -> int:
        """See `LevelFit`."""
        return most_bits()

    def even(self, bits: int, columns: int, codebook: CodebookType) -> bool:
        """At every width."""
        return True

    def fit(self, rows: WeightRows, bits: UInt8, codebook: CodebookType, coupling: Coupling | None) -> FittedRows:
        """See `LevelFit`; with a coupling codes are found by error feedback."""
        codes, levels, errors = range_affine(rows, bits)
        if coupling is not None:
            values = levels.values()
            codes = feed_back(rows, coupling, bits, values)
            errors = refine(rows, coupling.correlation, bits, values, codes, rounds=1, sweeps=0, fit=False)[2]
        return codes, levels, errors

    def width_errors(self, rows: WeightRows, widths: Sequence[int]) -> Float64:
        """See `LevelFit`."""
        return np.stack([range_affine(rows, np.full(rows.count, b, np.uint8))[2] for b in widths], axis=1)


def even_levels_pay(bits: int, columns: int, codebook: CodebookType) -> bool:
    """Whether even levels are the better use of the bits for rows of `columns` weights that all matter alike.

    A codebook has to earn what it takes. For normally distributed weights free levels gain `FREE_LEVELS_GAIN` bits a
    weight; in a row of 576 weights a codebook of 6 bits takes 0.86.
    """
    if bits >= AFFINE_BITS:
        return True
    further = level_bytes(bits, codebook, affine=False) - level_bytes(bits, codebook, affine=True)
    return 8 * further / columns >= FREE_LEVELS_GAIN[bits]


def _in_parts(rows: WeightRows, bits: UInt8, is_second: npt.NDArray[np.bool_], first: _Fit, second: _Fit) -> FittedRows:
    """Fit some rows in the first and some in the second way."""
    if is_second.all():
        return second(rows, bits)
    if not is_second.any():
        return first(rows, bits)
    parts = ((some, fit(rows.take(some), bits[some])) for fit, some in ((first, ~is_second), (second, is_second)))
    return merge_fits(bits, list(parts))


def merge_fits(
    bits: UInt8, parts: Sequence[tuple[npt.NDArray[np.bool_] | npt.NDArray[np.int64], FittedRows]]
) -> FittedRows:
    """Rows that were fitted apart in the order of all of them.

    Args:
        bits: width of each row, uint8 `[N]`.
        parts: which rows, and what was found for them.
    """
    count, columns = len(bits), parts[0][1][0].shape[1]
    dtype = np.result_type(*(levels.entries.dtype for _, (_, levels, _) in parts))  # rows of even levels have none
    all_codes, all_errors = np.empty((count, columns), np.uint8), np.empty(count)
    kind, memory = np.empty(count, np.uint8), np.empty(count, np.uint8)
    scale, offset = np.empty(count, np.float16), np.empty(count, np.float16)
    entries = np.zeros((count, max(part[1].entries.shape[1] for _, part in parts)), dtype)
    for rows, (codes, levels, errors) in parts:
        all_codes[rows], all_errors[rows] = codes, errors
        kind[rows], memory[rows], scale[rows], offset[rows] = levels.kind, levels.memory, levels.scale, levels.offset
        entries[rows, : levels.entries.shape[1]] = levels.entries
    return all_codes, RowLevels(bits, kind, entries, scale, offset, memory), all_errors
