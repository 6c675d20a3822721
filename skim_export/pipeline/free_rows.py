"""The rows without a width of their own, and what a budget leaves to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skim_export.checkpoint import Linear
from skim_export.pipeline.budget import Budget
from skim_export.pipeline.quantize_linear import QuantizeOptions
from skim_export.quantize import even_bits
from skim_runtime.errors import UserError

__all__ = ["FreeRows"]

STEPS = 64  # of a bit, in which an average is looked for where all that is stored counts


@dataclass(frozen=True)
class FreeRows:
    """The rows of the layers that a budget is for, but for those that were given a width.

    Attributes:
        linears: the layers, in order.
        options: which widths were given.
        bits: bits that the free rows may take together.
        average: the widest average, at most 8, that this allows if it is the same in every layer.
    """

    linears: list[Linear]
    options: QuantizeOptions
    bits: int
    average: float

    @classmethod
    def of(cls, linears: list[Linear], options: QuantizeOptions, budget: Budget) -> FreeRows:
        """What the budget of some layers leaves.

        Raises:
            UserError: that is less than codes of 1 bit take.
        """
        shapes = [(linear.out_features, linear.in_features) for linear in linears]
        total = budget.total(shapes, column_scale=options.method.column_scale)
        counts, costs, taken, above = [], [], 0, 0.0
        for linear in linears:
            cost = budget.row_costs(range(1, 9), linear.in_features, options.codebook, options.method)
            given = options.given(linear)
            kept = given[given > 0]
            taken += int(cost[kept - 1].sum())
            above += linear.in_features * (int(kept.sum()) - budget.bits * kept.size)
            counts.append(linear.out_features - kept.size)
            costs.append(cost)
        least = sum(count * int(cost[0]) for count, cost in zip(counts, costs, strict=True))
        left, weights = total - taken, sum(rows * columns for rows, columns in shapes)
        free = sum(count * linear.in_features for count, linear in zip(counts, linears, strict=True))
        if left + 1 < least:  # a budget is rounded down to a bit
            raise UserError(_too_little(budget, taken, weights - free, left, least, free))
        average = 8.0
        if free:
            average = _average(counts, costs, max(left, least)) if budget.stored else budget.bits - above / free
        return cls(linears, options, max(left, least), min(8.0, max(1.0, average)))

    def mask(self, linear: Linear) -> npt.NDArray[np.bool_]:
        """Which rows of a layer are free, bool `[N]`."""
        return np.equal(self.options.given(linear), 0)

    @property
    def searched(self) -> list[Linear]:
        """The layers that have free rows, in order."""
        return [linear for linear in self.linears if self.mask(linear).any()]

    def even(self) -> list[npt.NDArray[np.uint8]]:
        """Widths of the free rows of each layer of `searched`, the same average in all."""
        return [even_bits(int(self.mask(linear).sum()), self.average) for linear in self.searched]

    def filled(self, widths: Sequence[npt.NDArray[np.uint8]]) -> dict[str, npt.NDArray[np.uint8]]:
        """The width of every row, uint8 `[N]` by layer, from those of the free rows of each layer of `searched`."""
        found = {linear.name: self.options.given(linear).copy() for linear in self.linears}
        for linear, of_free in zip(self.searched, widths, strict=True):
            found[linear.name][self.mask(linear)] = of_free
        return found


def _too_little(budget: Budget, taken: int, kept: int, left: int, least: int, free: int) -> str:
    """What is wrong with a budget of which rows with so many kept weights take too much."""
    if not kept:
        return f"{budget.bits:.3g} effective bits per weight are too few: codes of 1 bit take more"
    others = "and they are all that there is"
    if free:
        remains = f"{left / free:.3g} bits" if left > 0 else "nothing"
        others = f"which leaves {remains} for each of the other weights; they need {least / free:.3g}"
    return (
        f"--keep: its layers take {taken / kept:.3g} bits a weight of a budget of {budget.bits:.3g} for all, {others}"
    )


def _average(counts: Sequence[int], costs: Sequence[npt.NDArray[np.int64]], left: int) -> float:
    """The widest average in steps of 1/64 bit whose rows, spread as by `even_bits`, take no more than what is left."""

    def cost(average: float) -> int:
        narrow, total = math.floor(average), 0
        for rows, of_width in zip(counts, costs, strict=True):
            wide = math.floor(rows * average) - rows * narrow
            total += (rows - wide) * int(of_width[narrow - 1]) + (wide * int(of_width[narrow]) if wide else 0)
        return total

    return max(steps / STEPS for steps in range(STEPS, 8 * STEPS + 1) if cost(steps / STEPS) <= left)
