"""The classes of rows, and what a packed linear stores for a row of each.

A class fixes how the bytes of a row are read. Whatever depends on it follows from `RowClass`: its number in the
format, the sizes of what it has in each tensor, the kernels made for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from skim_export.packed.codes import row_bytes
from skim_export.packed.levels import LevelKind
from skim_runtime.operators import CLASSES

__all__ = [
    "CLASSES",
    "CodebookType",
    "RowClass",
    "all_classes",
    "class_bits",
    "class_kind",
    "class_numbers",
    "level_bytes",
]

_WIDTHS = 8  # of each kind

CodebookType = Literal["int8", "float16"]


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
    codebook: CodebookType | None

    @classmethod
    def of(cls, kind: LevelKind, bits: int, codebook: CodebookType) -> RowClass:
        """The class of a kind and width in a packed linear whose codebook has entries of the type `codebook`."""
        return cls(kind, bits, None if kind == LevelKind.AFFINE else codebook)

    @classmethod
    def numbered(cls, number: int, codebook: CodebookType) -> RowClass:
        """The class of a number in a packed linear whose codebook has entries of the type `codebook`."""
        return cls.of(class_kind(number), class_bits(number), codebook)

    @property
    def name(self) -> str:
        """As it appears in the names of kernels: `table3_int8`, `affine8`."""
        return f"affine{self.bits}" if self.codebook is None else f"table{self.bits}_{self.codebook}"

    @property
    def number(self) -> int:
        """Of the class in the packed format, an index into `rows_per_class`."""
        return int(self.kind) * _WIDTHS + self.bits - 1

    @property
    def entries(self) -> int:
        """Codebook entries of a row."""
        return 0 if self.codebook is None else 1 << self.bits

    @property
    def scales(self) -> int:
        """Elements of `row_scale` of a row: the codebook's scale, or scale and offset of affine levels."""
        return {"int8": 1, "float16": 0, None: 2}[self.codebook]

    @property
    def level_bytes(self) -> int:
        """Bytes that the levels of a row take: codebook and scale, or scale and offset."""
        return self.entries * (1 if self.codebook == "int8" else 2) + self.scales * 2

    def row_bytes(self, in_features: int) -> int:
        """Bytes that the codes of a row take."""
        return row_bytes(self.bits, in_features)


def class_bits(number: int) -> int:
    """Width of the rows of a class."""
    return number % _WIDTHS + 1


def class_kind(number: int) -> LevelKind:
    """Kind of the levels of the rows of a class."""
    return LevelKind(number // _WIDTHS)


def class_numbers(kind: npt.NDArray[np.uint8], bits: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """`RowClass.number` of each row, uint8 `[N]`, from its `LevelKind` and its width."""
    return (kind * _WIDTHS + bits - 1).astype(np.uint8)


def all_classes(codebook: CodebookType) -> list[RowClass]:
    """The classes that rows can have beside a codebook with entries of a type, by their numbers."""
    return [RowClass.numbered(number, codebook) for number in range(CLASSES)]


def level_bytes(bits: int, codebook: str, affine: bool) -> int:
    """`RowClass.level_bytes` of a width, with a codebook of "int8" or "float16" or with affine levels."""
    kind = LevelKind.AFFINE if affine else LevelKind.TABLE
    return RowClass.of(kind, bits, "int8" if codebook == "int8" else "float16").level_bytes
