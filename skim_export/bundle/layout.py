"""weights.bin: how the tensors of a bundle lie in the file that devices map into memory.

The file begins with a header of 64 bytes: `MAGIC`, the SHA-256 of all that follows, and zeros. Every tensor is aligned
to 64 bytes, little-endian, and followed by at least 64 bytes: kernels read whole vectors. The same tensors give the
same bytes.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from skim_export.bundle.abi import Product
from skim_export.packed import PackedLinear, RowClass

__all__ = ["HEADER_BYTES", "TENSOR_ALIGNMENT", "LinearLayout", "RowsLayout", "WeightsFile"]

TENSOR_ALIGNMENT = 64
HEADER_BYTES = 64
MAGIC = b"skim weights 1\n\0"


@dataclass(frozen=True)
class RowsLayout:
    """Where the tensors of a packed linear's rows of one class lie.

    Attributes:
        row_class: of the rows.
        count: number of rows.
        row_bytes: bytes of a row's codes.
        codes: offset of the codes in the file, as in the packed format.
        codebook: offset of the codebook, as in the packed format; 0 for affine rows.
        row_scale: offset of float32 `[count]`, or `[count, 2]` of affine rows; 0 for float16 codebooks.
        row_index: offset of int32 `[count]`, the original index of each row.
    """

    row_class: RowClass
    count: int
    row_bytes: int
    codes: int
    codebook: int
    row_scale: int
    row_index: int


@dataclass(frozen=True)
class LinearLayout:
    """Where the tensors of a packed linear lie; the offset of a tensor that there is not is 0.

    Attributes:
        out_features: N.
        in_features: K.
        rows: of each class, in the order in which they are stored.
        column_scale: offset of float32 `[K]`.
        bias: offset of float32 `[N]`.
        stored_row: offset of int32 `[N]`, each row's place among the stored ones; 0 if they are in their own order.
        read_bytes: bytes that a product reads.
    """

    out_features: int
    in_features: int
    rows: tuple[RowsLayout, ...]
    column_scale: int
    bias: int
    stored_row: int
    read_bytes: int

    def products(self, *, integer: bool) -> list[Product]:
        """What kernels multiply, class by class."""
        return [Product(rows.row_class, integer, self.out_features, self.in_features) for rows in self.rows]


class WeightsFile:
    """Writes weights.bin, one tensor after the other; a context manager.

    Attributes:
        header: the file's first 64 bytes, once the file is closed.
        size: bytes written up to now.
    """

    def __init__(self, path: Path) -> None:
        self.header = b""
        self.size = HEADER_BYTES
        self._file = path.open("wb")
        self._file.write(bytes(HEADER_BYTES))
        self._hash = hashlib.sha256()
        self._shared: dict[tuple[str, bytes], int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._append(bytes(TENSOR_ALIGNMENT))
                self.header = (MAGIC + self._hash.digest()).ljust(HEADER_BYTES, b"\0")
                self._file.seek(0)
                self._file.write(self.header)
                self._file.flush()
                os.fsync(self._file.fileno())

    def add(self, array: npt.NDArray[Any]) -> int:
        """Append a tensor and return its offset."""
        self._append(bytes(-self.size % TENSOR_ALIGNMENT))
        offset = self.size
        self._append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data.cast("B"))
        return offset

    def add_shared(self, array: npt.NDArray[Any]) -> int:
        """The offset of a tensor, which is appended unless one of the same values is there already."""
        key = (array.dtype.str, hashlib.sha256(array.tobytes()).digest())
        if key not in self._shared:
            self._shared[key] = self.add(array)
        return self._shared[key]

    def add_linear(self, packed: PackedLinear, *, gathered: bool) -> LinearLayout:
        """Append the tensors of a packed linear; `gathered` if its rows are looked up one by one, too."""
        order = packed.row_order().astype(np.int32)
        codes = self.add(packed.codes)
        row_index = self.add_shared(order)
        rows = []
        for section in packed.sections():
            layout = RowsLayout(
                row_class=section.row_class,
                count=section.count,
                row_bytes=section.row_class.row_bytes(packed.in_features),
                codes=codes + section.codes_start,
                codebook=self.add(section.codebook) if section.codebook.size else 0,
                row_scale=self.add(section.row_scale.astype(np.float32)) if section.row_scale.size else 0,
                row_index=row_index + 4 * section.row_start,
            )
            rows.append(layout)
        ones = np.ones(packed.in_features, np.float32)
        stored = np.argsort(order).astype(np.int32)
        return LinearLayout(
            out_features=packed.out_features,
            in_features=packed.in_features,
            rows=tuple(rows),
            column_scale=self.add_shared(packed.column_scale.astype(np.float32) if packed.column_scale.size else ones),
            bias=self.add(packed.bias) if packed.bias.size else 0,
            stored_row=self.add(stored) if gathered and len(rows) > 1 else 0,
            read_bytes=packed.codes.nbytes + packed.codebook.nbytes + 4 * (packed.row_scale.size + sum(order.shape)),
        )

    def _append(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)
