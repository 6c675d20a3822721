"""The classes of rows that kernels are made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from skim_export.packed.format import LevelKind, PackedLinear, class_bits, class_kind

__all__ = ["RowClass", "row_classes"]


@dataclass(frozen=True, order=True)
class RowClass:
    """What a kernel needs to know of a row beforehand.

    Attributes:
        kind: of its levels.
        bits: its width, 1 to 8.
        codebook: type of its codebook's entries; affine rows have none.
    """

    kind: LevelKind
    bits: int
    codebook: Literal["int8", "float16"] | None

    @property
    def name(self) -> str:
        """As it appears in the names of kernels: `table3_int8`, `affine8`."""
        return f"affine{self.bits}" if self.codebook is None else f"table{self.bits}_{self.codebook}"

    @property
    def number(self) -> int:
        """Of the class in the packed format, an index into `rows_per_class`."""
        return int(self.kind) * 8 + self.bits - 1

    @property
    def entries(self) -> int:
        """Codebook entries of a row."""
        return 0 if self.codebook is None else 1 << self.bits

    @property
    def scales(self) -> int:
        """Elements of `row_scale` of a row: the codebook's scale, or scale and offset of affine levels."""
        return {"int8": 1, "float16": 0, None: 2}[self.codebook]


def row_classes(packed: PackedLinear) -> list[RowClass]:
    """The classes that a packed linear has rows of, in the order in which these are stored."""
    classes = []
    for number, rows in enumerate(packed.rows_per_class):
        if rows:
            kind = class_kind(number)
            codebook: Literal["int8", "float16"] = "int8" if packed.codebook.dtype.name == "int8" else "float16"
            classes.append(RowClass(kind, class_bits(number), None if kind == LevelKind.AFFINE else codebook))
    return classes
