"""A section of a packed linear: its stored rows of one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from skim_export.packed.row_class import RowClass

__all__ = ["Section"]


@dataclass(frozen=True)
class Section:
    """The stored rows of one class: where they begin, and what of the tensors is theirs.

    Attributes:
        row_class: of the rows.
        count: number of rows, R.
        row_start: stored rows before them.
        codes_start: elements of `codes` before theirs; those before are of other sections.
        codebook_start: elements of `codebook` before theirs.
        row_scale_start: elements of `row_scale` before theirs.
        codes: uint8 `[R, row_class.row_bytes(K)]`, a view of the packed linear's.
        codebook: int8 or float16 `[R, row_class.entries]`, a view of the packed linear's.
        row_scale: float16 `[R, row_class.scales]`, a view of the packed linear's.
    """

    row_class: RowClass
    count: int
    row_start: int
    codes_start: int
    codebook_start: int
    row_scale_start: int
    codes: npt.NDArray[np.uint8]
    codebook: npt.NDArray[Any]
    row_scale: npt.NDArray[np.float16]

    TENSORS: ClassVar = ("codes", "codebook", "row_scale")  # the packed linear's that consist of sections

    @property
    def rows(self) -> slice:
        """Of the stored rows; an index into `PackedLinear.row_order()`."""
        return slice(self.row_start, self.row_start + self.count)
