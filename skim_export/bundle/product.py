"""The products that a bundle has kernels for."""

from __future__ import annotations

from dataclasses import dataclass

from skim_export.bundle.row_class import RowClass
from skim_export.bundle.schedule import Schedule

__all__ = ["Product"]


@dataclass(frozen=True)
class Product:
    """A kernel: the rows of one class times tokens.

    Attributes:
        row_class: of the rows.
        integer: whether tokens are rounded to integers (docs/format.md, "Arithmetic"); codebooks of float16 have no
            such product.
        schedule: of its loops.
        variant: tells kernels apart that differ in their schedules only; 0 for the first.
    """

    row_class: RowClass
    integer: bool
    schedule: Schedule
    variant: int = 0

    @property
    def name(self) -> str:
        """Of its function in C."""
        arithmetic = "_integer" if self.integer else ""
        variant = f"_{self.variant}" if self.variant else ""
        return f"skim_matmul_{self.row_class.name}{arithmetic}{variant}"
