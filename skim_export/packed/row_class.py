"""The classes of rows, and what a packed linear stores for a row of each.

A class fixes how the bytes of a row are read. Whatever depends on it follows from `RowClass`: its number in the
format, the sizes of what it has in each tensor, the kernels made for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from skim_export.packed.codes import FIELDS, Field, row_bytes, stream_fields
from skim_export.packed.levels import LevelKind, RowLevels
from skim_runtime.operators import CLASSES, PLAIN_CLASSES

__all__ = [
    "CLASSES",
    "CodebookType",
    "RowClass",
    "all_classes",
    "class_bits",
    "class_kind",
    "class_memory",
    "class_numbers",
    "level_bytes",
]

_WIDTHS = 8  # of each kind
WINDOWS = ((1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (4, 1))  # width and memory of the classes from PLAIN_CLASSES on

CodebookType = Literal["int8", "float16"]


@dataclass(frozen=True, order=True)
class RowClass:
    """What a kernel needs to know of a row beforehand.

    Attributes:
        kind: of its levels.
        bits: its width, 1 to 8.
        codebook: type of its codebook's entries; affine rows have none.
        memory: bits of a window beside those of its code; 0: levels are those of the codes.
    """

    kind: LevelKind
    bits: int
    codebook: CodebookType | None
    memory: int = 0

    @classmethod
    def of(cls, kind: LevelKind, bits: int, codebook: CodebookType, memory: int = 0) -> RowClass:
        """The class of a kind and width in a packed linear whose codebook has entries of the type `codebook`."""
        return cls(kind, bits, None if kind == LevelKind.AFFINE else codebook, memory)

    @classmethod
    def numbered(cls, number: int, codebook: CodebookType) -> RowClass:
        """The class of a number in a packed linear whose codebook has entries of the type `codebook`."""
        return cls.of(class_kind(number), class_bits(number), codebook, class_memory(number))

    @property
    def name(self) -> str:
        """As it appears in the names of kernels: `table3_int8`, `affine8`, `window3_1_int8`."""
        if self.memory:
            return f"window{self.bits}_{self.memory}_{self.codebook}"
        return f"affine{self.bits}" if self.codebook is None else f"table{self.bits}_{self.codebook}"

    @property
    def number(self) -> int:
        """Of the class in the packed format, an index into `rows_per_class`."""
        return class_number(self.kind, self.bits, self.memory)

    @property
    def fields(self) -> list[Field]:
        """Where the bits of the codes lie."""
        return stream_fields(self.bits) if self.memory else FIELDS[self.bits]

    @property
    def window_fields(self) -> list[Field]:
        """Where the bits of what levels are looked up by lie: of the windows, if there are such."""
        return stream_fields(self.bits, self.memory) if self.memory else FIELDS[self.bits]

    @property
    def level_bits(self) -> int:
        """Bits that a level is looked up by: b + m."""
        return self.bits + self.memory

    @property
    def entries(self) -> int:
        """Codebook entries of a row: of windows those of the lower half, whose negatives the others have."""
        return 0 if self.codebook is None else 1 << (self.level_bits - (self.memory > 0))

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
    return number % _WIDTHS + 1 if number < PLAIN_CLASSES else WINDOWS[number - PLAIN_CLASSES][0]


def class_kind(number: int) -> LevelKind:
    """Kind of the levels of the rows of a class."""
    return LevelKind(number // _WIDTHS) if number < PLAIN_CLASSES else LevelKind.TABLE


def class_memory(number: int) -> int:
    """Memory of the rows of a class."""
    return 0 if number < PLAIN_CLASSES else WINDOWS[number - PLAIN_CLASSES][1]


def class_number(kind: int, bits: int, memory: int) -> int:
    """The number of a class.

    Raises:
        ValueError: there is no such class.
    """
    return PLAIN_CLASSES + WINDOWS.index((bits, memory)) if memory else int(kind) * _WIDTHS + bits - 1


def class_numbers(levels: RowLevels) -> npt.NDArray[np.uint8]:
    """`RowClass.number` of each row, uint8 `[N]`.

    Raises:
        ValueError: a row has a memory that its width can't have.
    """
    kinds, rows = np.unique(np.stack([levels.kind, levels.bits, levels.memory]), axis=1, return_inverse=True)
    return np.array([class_number(*kind) for kind in kinds.T.tolist()], np.uint8)[rows.reshape(-1)]


def all_classes(codebook: CodebookType) -> list[RowClass]:
    """The classes that rows can have beside a codebook with entries of a type, by their numbers."""
    return [RowClass.numbered(number, codebook) for number in range(CLASSES)]


def level_bytes(bits: int, codebook: str, affine: bool, memory: int = 0) -> int:
    """`RowClass.level_bytes` of a width, with a codebook of "int8" or "float16" or with affine levels."""
    kind = LevelKind.AFFINE if affine else LevelKind.TABLE
    return RowClass.of(kind, bits, "int8" if codebook == "int8" else "float16", memory).level_bytes
