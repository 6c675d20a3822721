"""Bit allocation: which row gets which width, for any average (SKIM, arXiv 2412.04180, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skim_runtime.errors import UserError

__all__ = ["LinearCurves", "allocate_bits", "even_bits"]

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LinearCurves:
    """What the rows of a linear lose at each width, and what each width costs.

    Attributes:
        errors: float64 `[N, widths]`, at least 0.
        widths: the widths in bits, ascending, uint8 `[widths]`.
        costs: bits that one row costs at each width, ascending, int64 `[widths]`.
    """

    errors: npt.NDArray[np.float64]
    widths: UInt8
    costs: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Steps:
    """Steps along the lower convex hulls of some rows."""

    slope: npt.NDArray[np.float64]  # error saved per bit
    cost: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    level: npt.NDArray[np.int64]  # index of the width after the step


def allocate_bits(linears: Sequence[LinearCurves], budget: int) -> list[UInt8]:
    """Widths with the least total error that greedy choice finds within a budget.

    Every row starts at its cheapest width; then the step that saves most error per bit is taken, over all rows of all
    linears, until the budget is spent. Error curves are replaced by their lower convex hulls, on which this is optimal
    up to the last step. A step that no longer fits ends its row, and cheaper ones are tried. The total error never
    rises with the budget, and equal gains are taken in the order of linears and rows.

    Args:
        linears: the curves of each linear.
        budget: bits to spend on all rows together.

    Returns:
        width of each row, uint8 `[N]`, for each linear.

    Raises:
        UserError: not even the cheapest widths fit.
    """
    least = sum(int(linear.costs[0]) * len(linear.errors) for linear in linears)
    if budget < least:
        raise UserError(f"budget of {budget} bits: too small for these layers, the smallest possible is {least} bits")
    if not linears:
        return []
    first_rows = np.cumsum([0] + [len(linear.errors) for linear in linears])
    steps = _join([_hull_steps(linear, int(first)) for linear, first in zip(linears, first_rows[:-1], strict=True)])
    level = np.zeros(first_rows[-1], np.int64)
    # Within a row slopes fall strictly, so a stable sort keeps the order of its steps.
    order = np.argsort(-steps.slope, kind="stable")
    spent = least + np.cumsum(steps.cost[order])
    fitting = int(np.searchsorted(spent, budget, side="right"))
    np.maximum.at(level, steps.row[order[:fitting]], steps.level[order[:fitting]])
    _fill(level, steps, order[fitting:], budget - (int(spent[fitting - 1]) if fitting else least))
    return [
        linear.widths[level[start:end]]
        for linear, start, end in zip(linears, first_rows[:-1], first_rows[1:], strict=True)
    ]


def _fill(level: npt.NDArray[np.int64], steps: _Steps, order: npt.NDArray[np.int64], left: int) -> None:
    """Take what still fits of the steps in `order`; a step can only be taken after those before it in its row."""
    if order.size == 0:
        return
    cheapest = int(steps.cost[order].min())
    ended = set()
    for step in order.tolist():
        if left < cheapest:
            return
        row, cost = int(steps.row[step]), int(steps.cost[step])
        if row in ended:
            continue
        if cost <= left:
            level[row] = steps.level[step]
            left -= cost
        else:
            ended.add(row)


def _hull_steps(linear: LinearCurves, first_row: int) -> _Steps:
    errors, costs = linear.errors, linear.costs
    rows = np.arange(len(errors))
    at = np.zeros(len(errors), np.int64)
    parts = []
    while rows.size:
        saved = errors[rows, at[rows]][:, None] - errors[rows]
        spent = costs - costs[at[rows]][:, None]
        slopes = np.divide(saved, spent, out=np.full(saved.shape, -np.inf), where=spent > 0)
        # The last of equally steep points, so that slopes fall strictly along the hull.
        level = costs.size - 1 - np.argmax(slopes[:, ::-1], axis=1)
        slope = np.take_along_axis(slopes, level[:, None], axis=1)[:, 0]
        gains = slope > 0
        rows, level, slope = rows[gains], level[gains], slope[gains]
        parts.append(_Steps(slope, costs[level] - costs[at[rows]], rows + first_row, level))
        at[rows] = level
    return _join(parts)


def _join(parts: Sequence[_Steps]) -> _Steps:
    return _Steps(
        np.concatenate([part.slope for part in parts]),
        np.concatenate([part.cost for part in parts]),
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.level for part in parts]),
    )


def even_bits(rows: int, average: float) -> UInt8:
    """Widths for methods without allocation: the two integers around the average, spread evenly over the rows.

    Returns:
        uint8 `[rows]`, with sum `floor(rows * average)`.

    Raises:
        UserError: the average is not from 1 to 8.
    """
    if not 1 <= average <= 8:
        raise UserError(f"average width {average:g}: must be from 1 to 8 bits")
    return np.diff(np.array([math.floor(row * average) for row in range(rows + 1)])).astype(np.uint8)
