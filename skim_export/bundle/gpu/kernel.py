"""A kernel as it is handed to the code generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from skim_export.bundle.gpu.kernel_list import GridAxis
from skim_export.packed import RowClass

__all__ = ["Kernel"]


@dataclass(frozen=True)
class Kernel:
    """A kernel and what its launch needs.

    Attributes:
        name: of the kernel.
        operation: what it does.
        row_class: of the rows that it reads; None if it reads none.
        function: TVM's PrimFunc.
        grid: axes x and y of the grid.
        workgroup: threads along x and y.
    """

    name: str
    operation: Literal["prepare", "decode", "prefill", "gather"]
    row_class: RowClass | None
    function: Any
    grid: tuple[GridAxis, ...]
    workgroup: tuple[int, ...]
