"""Errors of rows that the rows after them make up for.

What the loss minds of a layer's errors is about `sum_rs R_rs z_r^T C z_s`, with z_r = S_r^1/2 d_r the scaled error of a
row, C the correlation of the columns and R that of the gradients of the rows' outputs: a Kronecker-factored Hessian, as
in YAQA (arXiv 2505.22988), whose factor of the outputs is applied row by row there. Here the rows of a block of
`ROW_GROUP` take turns: those of one turn are quantized as if they did not go together, each to the weights that make up
best for the errors of the turns before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from skim_export.packed import PackedLinear
from skim_export.quantize.level_fits import FittedRows, merge_fits
from skim_export.quantize.native_library import refine_floor
from skim_export.quantize.one_thread import one_thread
from skim_export.quantize.solver import WeightRows
from skim_export.work.resources import ROW_GROUP

if TYPE_CHECKING:
    import torch

__all__ = ["TURNS", "fit_in_turns"]

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

TURNS = 4  # twice as many gain a tenth more, and leave the solver half as many rows at a time
_DAMPING = 0.2  # towards rows that do not go together


def fit_in_turns(
    rows: WeightRows, correlation: Float32, bits: UInt8, fit: Callable[[WeightRows, UInt8], FittedRows]
) -> FittedRows:
    """Quantize rows in turns, the errors of each made up for in those to come.

    Args:
        rows: of W, whole blocks but for the last one of all.
        correlation: of the rows of each block, float32 `[N, ROW_GROUP]`, 1 on its diagonal.
        bits: width of each row, uint8 `[N]`.
        fit: quantizes rows of a turn.

    Returns:
        codes, levels and errors of all rows; an error is that of the weights that a row was to have.
    """
    blocks = [
        _Block(start, correlation[start : start + ROW_GROUP, : len(rows.values) - start])
        for start in range(0, rows.count, ROW_GROUP)
    ]
    errors = np.zeros(rows.values.shape, np.float32)  # scaled, of the turns that are done
    parts, turns = [], min(TURNS, rows.count)
    for turn in range(turns):
        numbers = np.concatenate([block.rows(turn) for block in blocks])
        shift = np.concatenate([block.shift(turn, errors) for block in blocks])
        some = rows.take(numbers)
        root, largest = _root(some), np.abs(some.values).max(axis=1, keepdims=True)
        # A weight that hardly matters would be sent far away: it stays within what its row has.
        found = fit(some.of(np.clip(some.values + shift / root, -largest, largest)), bits[numbers])
        parts.append((numbers, found))
        if turn + 1 < turns:  # nothing comes after the last
            quantized = PackedLinear.pack(found[0], found[1]).dequantize() * rows.column_scale
            errors[numbers] = root * (quantized - some.values)
    return merge_fits(bits, parts)


class _Block:
    """Rows that are seen together: what those of each turn make up for.

    With R = U U^T, U upper triangular by turns, the error is a sum of squares of which each turn has one, and that of a
    turn is least where the scaled errors of its rows are `-U_tt^-T U_pt^T` times those of the rows p of earlier turns.

    Args:
        start: the first of the rows.
        correlation: R, float32 `[n, n]`.
    """

    def __init__(self, start: int, correlation: Float32) -> None:
        import torch

        self._start, count = start, len(correlation)
        self._turns = [np.arange(turn, count, TURNS) for turn in range(TURNS)]
        order = np.concatenate(self._turns)
        damped = (1 - _DAMPING) * correlation.astype(np.float64)
        np.fill_diagonal(damped, 1)
        backwards = torch.from_numpy(damped[np.ix_(order[::-1], order[::-1])])
        with one_thread():
            factor = torch.linalg.cholesky(backwards).flip(0, 1)
            self._earlier = list(self._weights(factor))

    def _weights(self, factor: torch.Tensor) -> Iterator[torch.Tensor]:
        """For each turn, what it takes of the errors of the earlier ones, float32 `[turn, earlier]`."""
        import torch

        done = 0
        for turn in self._turns:
            own = slice(done, done + len(turn))
            transposed = factor[own, own].T
            yield -torch.linalg.solve_triangular(transposed, factor[:done, own].T, upper=False).float()
            done = own.stop

    def rows(self, turn: int) -> npt.NDArray[np.int64]:
        """The rows of a turn."""
        return self._start + self._turns[turn]

    def shift(self, turn: int, errors: Float32) -> Float32:
        """The scaled errors that the rows of a turn should have, float32 `[turn, K]`, by those of all rows so far."""
        import torch

        earlier = self._start + np.concatenate(self._turns[:turn] or [np.empty(0, np.int64)])
        with one_thread():
            result: Float32 = (self._earlier[turn] @ torch.from_numpy(errors[earlier])).numpy()
        return result


def _root(rows: WeightRows) -> Float32:
    """S^1/2 as the solver has it, float32 `[N, K]`."""
    if rows.weights is None:
        return np.ones(rows.values.shape, np.float32)
    mean = rows.weights.mean(axis=1, keepdims=True, dtype=np.float64)
    least = np.where(mean > 0, refine_floor() * mean, 1)
    root: Float32 = np.sqrt(np.maximum(rows.weights, least)).astype(np.float32)
    return root
