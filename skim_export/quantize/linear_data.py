"""Where the numbers of one linear come from: all that a method asks of the world outside.

Matrices are read in runs of rows, given as slices with a start and a stop, so that none has to be in memory as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["LinearArrays", "LinearData", "Statistics"]

Float32 = npt.NDArray[np.float32]


class Statistics(Protocol):
    """What calibration found of one linear."""

    def fisher(self, rows: slice) -> Float32:
        """Fisher information of the weights of some rows, float32 `[R, K]`."""

    def input_square(self) -> Float32:
        """Mean squares of the inputs, float32 `[K]`."""

    def correlation(self) -> Float32:
        """Correlation of the inputs, float32 `[K, K]`, 1 on its diagonal; the caller may change it."""

    def output_correlation(self, rows: slice) -> Float32 | None:
        """Correlation of the outputs' gradients, float32 `[R, ROW_GROUP]`, see `LinearData`."""


class LinearData(Protocol):
    """One linear, W `[N, K]`, and what its method needs to know of it."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""

    def weight(self, rows: slice) -> Float32:
        """Some rows of W, float32 `[R, K]`."""

    def sensitivity(self, rows: slice) -> Float32 | None:
        """What the squared errors of their weights count, float32 `[R, K]`, at least 0; None if all the same.

        A row of zeros is quantized as if all its weights mattered alike.
        """

    def correlation(self) -> Float32:
        """Of the columns, float32 `[K, K]`, 1 on its diagonal; the caller may change it."""

    def output_correlation(self, rows: slice) -> Float32 | None:
        """Of some rows with those of the same block of `ROW_GROUP` rows, float32 `[R, ROW_GROUP]`; None if unknown."""


@dataclass(frozen=True)
class LinearArrays:
    """A linear that is in memory.

    Attributes:
        values: W, float32 `[N, K]`.
        sensitivities: float32 `[N, K]`, or None.
        correlations: of the columns, float32 `[K, K]`, if the method is correlated.
        name: for messages.
        output_correlations: of the rows of each block, float32 `[N, ROW_GROUP]`, or None.
    """

    values: Float32
    sensitivities: Float32 | None = None
    correlations: Float32 | None = None
    name: str = "weight"
    output_correlations: Float32 | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        rows, columns = self.values.shape
        return rows, columns

    def weight(self, rows: slice) -> Float32:
        """See `LinearData`."""
        return self.values[rows]

    def sensitivity(self, rows: slice) -> Float32 | None:
        """See `LinearData`."""
        return None if self.sensitivities is None else self.sensitivities[rows]

    def correlation(self) -> Float32:
        """See `LinearData`.

        Raises:
            ValueError: there is none.
        """
        if self.correlations is None:
            raise ValueError(f"{self.name}: a correlated method needs the correlation of the columns")
        return self.correlations.copy()

    def output_correlation(self, rows: slice) -> Float32 | None:
        """See `LinearData`."""
        return None if self.output_correlations is None else self.output_correlations[rows]
