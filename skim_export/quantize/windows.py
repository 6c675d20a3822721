"""Rows whose codes overlap: their windows and levels under the full objective (docs/quantizer.md, "Windows").

A window is a code with the bits that stand before it in its lane (docs/format.md). The solver takes the eight columns
of a lane one after the other.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skim_export.packed import CodebookType, RowLevels, mirrored
from skim_export.quantize.levels import round_levels
from skim_export.quantize.refinement import REFINE_ROUNDS, Coupling, level_mass
from skim_export.quantize.solver import WeightRows, feedback, kmeans, refine, refit, window_kinds

__all__ = ["WINDOW_GAINS", "refine_windows", "worthwhile_memory"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]

# What windows of a width and a memory are worth beside codes alone, in bits a weight: log4 of the ratio of the errors
# under the full objective, the mean of six layers of SmolLM2 (0.01 to 0.47).
WINDOW_GAINS = {(1, 2): 0.14, (1, 3): 0.17, (2, 1): 0.16, (2, 2): 0.18, (3, 1): 0.16, (4, 1): 0.12}

_UNCOUPLED_ROUNDS = 4  # between windows and levels, before columns go together
_POINTS = 1024  # of the clustering that these rounds start from
_SWEEPS = 2  # over the windows of a row in each round: lanes are nearly settled by the first


def worthwhile_memory(bits: int, columns: int) -> int:
    """The memory that gains most over what its levels take as int8, 0 if none does.

    Args:
        bits: width of the codes.
        columns: of a row; their lanes must be whole.
    """
    if columns % 32:
        return 0
    net = {0: 0.0}
    for (width, memory), gain in WINDOW_GAINS.items():
        if width == bits:
            net[memory] = gain - 8 * ((1 << (bits + memory - 1)) - (1 << bits)) / columns
    return max(net, key=net.__getitem__)


def refine_windows(
    rows: WeightRows, coupling: Coupling, bits: UInt8, memory: UInt8, codebook: CodebookType
) -> tuple[UInt8, RowLevels, Float64]:
    """Quantize rows to windows under the full objective.

    Error feedback on starting levels, then levels and windows improved in turn; the levels are rounded to stored
    entries, and the windows improved once more for those.

    Args:
        rows: W, sensitivities and column scale, lane after lane.
        coupling: of the columns, in the same order.
        bits: width of each row's codes, uint8 `[N]`.
        memory: of each row's windows, uint8 `[N]`, at least 1.
        codebook: type of the entries.

    Returns:
        codes, uint8 `[N, K]`, lane after lane; levels; full objective of each row as stored, float64 `[N]`.
    """
    width = bits + memory
    order = np.lexsort((memory, width))  # the solver takes neighbours of the same widths together
    back = np.argsort(order)
    rows, width, memory = rows.take(order), width[order], memory[order]
    levels = _starting_levels(rows, width, memory)
    windows = feedback(rows, coupling.factor, width, levels, memory)
    levels, windows, _ = refine(
        rows, coupling.correlation, width, levels, windows, rounds=REFINE_ROUNDS, sweeps=_SWEEPS, memory=memory
    )
    free = levels[:, : levels.shape[1] // 2]
    mass = level_mass(rows, _free_levels(windows, width)[0], free.shape[1])
    stored = round_levels(free, mass, width - 1, codebook)
    found = RowLevels(bits[order], stored.kind, stored.entries, stored.scale, stored.offset, memory)
    _, windows, errors = refine(
        rows, coupling.correlation, width, found.values(), windows, rounds=1, sweeps=_SWEEPS, fit=False, memory=memory
    )
    codes = windows >> memory[:, None]
    return codes[back], found.take(back), errors[back]


def _starting_levels(rows: WeightRows, width: UInt8, memory: UInt8) -> Float32:
    """Levels by window from which refinement starts, float32 `[N, 2^max(width)]`.

    Those of k-means of the absolute values and their negatives are spread over the windows so that each state, the bits
    before a code, has levels of the whole range, and neighbours among them lead to different states (Ungerboeck's set
    partitioning, IEEE Transactions on Information Theory, 1982). Then windows and levels are improved in turn, as if
    columns did not go together.
    """
    magnitudes, _, _ = kmeans(rows.of(np.abs(rows.values)), width - 1, _POINTS)
    levels = np.zeros((rows.count, 1 << int(width.max())), np.float32)
    for some, w, m in window_kinds(width, memory):
        descending = magnitudes[some, : 1 << (w - 1)][:, ::-1]
        levels[some, : 1 << w] = mirrored(-descending)[:, _spread(w, m)]
    for _ in range(_UNCOUPLED_ROUNDS):
        windows = feedback(rows, None, width, levels, memory)
        codes, negative = _free_levels(windows, width)
        positive = rows.of(np.where(negative, -rows.values, rows.values))
        free = refit(positive, width - 1, codes, levels[:, : levels.shape[1] // 2])[0]
        for some, w, _ in window_kinds(width, memory):
            levels[some, : 1 << w] = mirrored(free[some, : 1 << (w - 1)])
    return levels


def _free_levels(windows: UInt8, width: UInt8) -> tuple[UInt8, npt.NDArray[np.bool_]]:
    """Which of the levels of the lower half each window's is, uint8 `[N, K]`, or is the negative of, bool `[N, K]`."""
    last = (np.uint8(1) << width)[:, None] - np.uint8(1)
    negative = windows > last >> 1
    return np.where(negative, last - windows, windows), negative


def _spread(width: int, memory: int) -> npt.NDArray[np.int64]:
    """Which of 2^width ascending levels each window gets: its code in reversed order of bits, then its state."""
    windows = np.arange(1 << width)
    code, state = windows >> memory, windows & ((1 << memory) - 1)
    bits = width - memory
    reversed_code = sum(((code >> i) & 1) << (bits - 1 - i) for i in range(bits))
    return (reversed_code << memory) + state
