"""The packed linear format: how codes, codebooks and scales lie in memory.

This module owns the format; `docs/format.md` is its normative description. Everything that writes or reads packed
weights in Python goes through `PackedLinear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from skim_runtime.operators import CLASSES, FORMAT_VERSION, TENSORS

__all__ = [
    "CLASSES",
    "FIELDS",
    "FORMAT_VERSION",
    "LANES",
    "LevelKind",
    "PackedFormatError",
    "PackedLinear",
    "RowLevels",
]

LANES = 32  # lanes of a full superblock: one AVX2 register
COLUMNS = 8 * LANES  # columns of a full superblock


class PackedFormatError(ValueError):
    """A packed tensor violates the format; the message names the tensor."""


class LevelKind(IntEnum):
    """How the levels of a row are given."""

    TABLE = 0
    AFFINE = 1


class Field(NamedTuple):
    """`length` bits of code `code`, from bit `code_bit` on, lie in byte `vector` of the lane from bit `bit` on."""

    code: int
    code_bit: int
    length: int
    vector: int
    bit: int


def _low_nibbles() -> list[Field]:
    return [Field(j, 0, 4, j // 2, 4 * (j % 2)) for j in range(8)]


def _bit_plane(code_bit: int, vector: int) -> list[Field]:
    return [Field(j, code_bit, 1, vector, j) for j in range(8)]


def _crumb_plane(code_bit: int, vector: int) -> list[Field]:
    return [Field(j, code_bit, 2, vector + j // 4, 2 * (j % 4)) for j in range(8)]


def _three_bits() -> list[Field]:
    fields = [Field(j, 0, 3, j // 2, 3 * (j % 2)) for j in range(6)]
    for j in (6, 7):
        fields += [Field(j, 0, 2, j - 6, 6), Field(j, 2, 1, 2, j)]
    return fields


FIELDS: dict[int, list[Field]] = {
    1: _bit_plane(0, 0),
    2: _crumb_plane(0, 0),
    3: _three_bits(),
    4: _low_nibbles(),
    5: _low_nibbles() + _bit_plane(4, 4),
    6: _low_nibbles() + _crumb_plane(4, 4),
    7: _low_nibbles() + _crumb_plane(4, 4) + _bit_plane(6, 6),
    8: [Field(j, 0, 8, j, 0) for j in range(8)],
}


def row_class(bits: npt.NDArray[np.uint8], kind: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Class of each row, `[N]`, from its width and its `LevelKind`."""
    return (kind * 8 + bits - 1).astype(np.uint8)


def class_bits(cls: int) -> int:
    """Width of the rows of a class."""
    return cls % 8 + 1


def class_kind(cls: int) -> LevelKind:
    """Kind of the levels of the rows of a class."""
    return LevelKind(cls // 8)


def row_bytes(bits: int, in_features: int) -> int:
    """Bytes that the codes of one row take."""
    return bits * 4 * -(-in_features // 32)


def level_bytes(bits: int, codebook: str, affine: bool) -> int:
    """Bytes that the levels of a row take: codebook ("int8" or "float16") and scale, or scale and offset."""
    if affine:
        return 4
    return (1 << bits) + 2 if codebook == "int8" else 2 << bits


def superblocks(in_features: int) -> list[tuple[int, int, int]]:
    """The runs of equal superblocks of a row: `(first column, number of superblocks, lanes)`."""
    full, rest = divmod(in_features, COLUMNS)
    runs = [(0, full, LANES)] if full else []
    if rest:
        runs.append((full * COLUMNS, 1, 4 * -(-rest // 32)))
    return runs


@dataclass(frozen=True)
class RowLevels:
    """The levels of N rows, in original row order.

    Attributes:
        bits: width of each row, uint8 `[N]`, 1..8.
        kind: `LevelKind` of each row, uint8 `[N]`.
        entries: codebook entries, int8 or float16 `[N, E]`, E at least 2^b for every table row; the rest is ignored.
        scale: float16 `[N]`; ignored for table rows with float16 entries.
        offset: float16 `[N]`; ignored for table rows.
    """

    bits: npt.NDArray[np.uint8]
    kind: npt.NDArray[np.uint8]
    entries: npt.NDArray[Any]
    scale: npt.NDArray[np.float16]
    offset: npt.NDArray[np.float16]

    def values(self) -> npt.NDArray[np.float32]:
        """The levels of all rows, float32 `[N, 2^max(bits)]`; a row uses its first 2^b."""
        count = 1 << int(self.bits.max())
        scale = self.scale.astype(np.float32)[:, None]
        values = np.zeros((len(self.bits), count), np.float32)
        table = self.kind == LevelKind.TABLE
        entries = self.entries[table, :count].astype(np.float32)
        values[table, : entries.shape[1]] = entries if self.entries.dtype == np.float16 else entries * scale[table]
        half = np.ldexp(np.float32(0.5), self.bits[~table].astype(np.int32))[:, None]
        steps = np.arange(count, dtype=np.float32) - half
        values[~table] = self.offset[~table].astype(np.float32)[:, None] + scale[~table] * steps
        return values

    def table(self, row: int) -> npt.NDArray[np.float32]:
        """The 2^b levels of one row, float32."""
        b = int(self.bits[row])
        if self.kind[row] == LevelKind.AFFINE:
            steps = np.arange(1 << b, dtype=np.float32) - np.float32(1 << (b - 1))
            return np.float32(self.offset[row]) + np.float32(self.scale[row]) * steps
        entries = self.entries[row, : 1 << b].astype(np.float32)
        return entries if self.entries.dtype == np.float16 else entries * np.float32(self.scale[row])


def pack_codes(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Pack codes `[R, K]` (values below 2^bits) into `[R, row_bytes(bits, K)]`."""
    rows, columns = codes.shape
    out = []
    for first, count, lanes in superblocks(columns):
        block = codes[:, first : first + count * 8 * lanes]
        padding = count * 8 * lanes - block.shape[1]
        block = np.pad(block, ((0, 0), (0, padding))).reshape(rows, count, 8, lanes)
        packed = np.zeros((rows, count, bits, lanes), np.uint8)
        for f in FIELDS[bits]:
            value = (block[:, :, f.code] >> np.uint8(f.code_bit)) & np.uint8((1 << f.length) - 1)
            packed[:, :, f.vector] |= value << np.uint8(f.bit)
        out.append(packed.reshape(rows, -1))
    return np.concatenate(out, axis=1)


def unpack_codes(packed: npt.NDArray[np.uint8], bits: int, in_features: int) -> npt.NDArray[np.uint8]:
    """Undo `pack_codes`: `[R, row_bytes]` to codes `[R, 32 * ceil(K / 32)]`, padding codes included."""
    rows = packed.shape[0]
    out = []
    start = 0
    for _, count, lanes in superblocks(in_features):
        size = count * bits * lanes
        block = packed[:, start : start + size].reshape(rows, count, bits, lanes)
        codes = np.zeros((rows, count, 8, lanes), np.uint8)
        for f in FIELDS[bits]:
            value = (block[:, :, f.vector] >> np.uint8(f.bit)) & np.uint8((1 << f.length) - 1)
            codes[:, :, f.code] |= value << np.uint8(f.code_bit)
        out.append(codes.reshape(rows, -1))
        start += size
    return np.concatenate(out, axis=1)


def _joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The parts one after the other; of the type of those that are not empty, since an empty codebook has any."""
    return np.concatenate([part for part in parts if part.size] or parts[:1])


@dataclass(frozen=True)
class PackedLinear:
    """One weight matrix in the packed format (see `docs/format.md` for shapes and meaning of the tensors)."""

    out_features: int
    in_features: int
    rows_per_class: tuple[int, ...]
    codes: npt.NDArray[np.uint8]
    codebook: npt.NDArray[Any]
    row_scale: npt.NDArray[np.float16]
    row_class: npt.NDArray[np.uint8]
    column_scale: npt.NDArray[np.float16]
    bias: npt.NDArray[np.float32]

    TENSORS = TENSORS

    @classmethod
    def pack(
        cls,
        codes: npt.NDArray[np.uint8],
        levels: RowLevels,
        column_scale: npt.NDArray[np.float16] | None = None,
        bias: npt.NDArray[np.float32] | None = None,
    ) -> PackedLinear:
        """Pack codes `[N, K]` and their levels.

        Raises:
            PackedFormatError: a code does not fit into its row's width, or a level, scale or bias is invalid.
        """
        rows, columns = codes.shape
        too_wide = codes.max(axis=1).astype(np.int32) >> levels.bits.astype(np.int32)
        if too_wide.any():
            row = int(np.flatnonzero(too_wide)[0])
            raise PackedFormatError(f"codes: row {row} has code {codes[row].max()}, above its {levels.bits[row]} bits")
        classes = row_class(levels.bits, levels.kind)
        counts = np.bincount(classes, minlength=CLASSES)
        int8 = levels.entries.dtype == np.int8
        code_parts, entry_parts, scale_parts = [], [], []
        for c in np.flatnonzero(counts).tolist():
            rows_of_class = np.flatnonzero(classes == c)
            code_parts.append(pack_codes(codes[rows_of_class], class_bits(c)).reshape(-1))
            if class_kind(c) == LevelKind.AFFINE:
                pairs = np.stack([levels.scale[rows_of_class], levels.offset[rows_of_class]], axis=1)
                scale_parts.append(pairs.reshape(-1))
            else:
                entry_parts.append(levels.entries[rows_of_class, : 1 << class_bits(c)].reshape(-1))
                if int8:
                    scale_parts.append(levels.scale[rows_of_class])
        packed = cls(
            out_features=rows,
            in_features=columns,
            rows_per_class=tuple(int(n) for n in counts),
            codes=np.concatenate(code_parts),
            codebook=np.concatenate(entry_parts) if entry_parts else np.zeros(0, levels.entries.dtype),
            row_scale=np.concatenate(scale_parts).astype(np.float16) if scale_parts else np.zeros(0, np.float16),
            row_class=classes if np.count_nonzero(counts) > 1 else np.zeros(0, np.uint8),
            column_scale=np.zeros(0, np.float16) if column_scale is None else column_scale,
            bias=np.zeros(0, np.float32) if bias is None else bias,
        )
        packed.validate()
        return packed

    @classmethod
    def concatenate(cls, parts: Sequence[PackedLinear]) -> PackedLinear:
        """One packed linear of the rows of several, which have the same columns and column scale.

        Raises:
            PackedFormatError: they do not go together.
        """
        first = parts[0]
        for part in parts:
            if part.in_features != first.in_features or not np.array_equal(part.column_scale, first.column_scale):
                raise PackedFormatError("column_scale: parts of one matrix must have the same")
        counts = np.sum([part.rows_per_class for part in parts], axis=0)
        by_class: dict[str, list[list[npt.NDArray[Any]]]] = {
            tensor: [[] for _ in range(CLASSES)] for tensor in ("codes", "codebook", "row_scale")
        }
        for part in parts:
            for c, sections in enumerate(part.class_sections()):
                for tensor, section in sections.items():
                    by_class[tensor][c].append(section)
        joined = {
            tensor: _joined([section for sections in classes for section in sections])
            for tensor, classes in by_class.items()
        }
        mixed = np.count_nonzero(counts) > 1
        packed = cls(
            out_features=sum(part.out_features for part in parts),
            in_features=first.in_features,
            rows_per_class=tuple(int(n) for n in counts),
            row_class=_joined([part.row_classes() for part in parts]) if mixed else np.zeros(0, np.uint8),
            column_scale=first.column_scale,
            bias=_joined([part.bias for part in parts]),
            **joined,
        )
        packed.validate()
        return packed

    def class_sections(self) -> list[dict[str, npt.NDArray[Any]]]:
        """For each class, what of `codes`, `codebook` and `row_scale` belongs to its rows."""
        sections = []
        start = dict.fromkeys(("codes", "codebook", "row_scale"), 0)
        for c, rows in enumerate(self.rows_per_class):
            b, affine = class_bits(c), class_kind(c) == LevelKind.AFFINE
            scales = 2 if affine else int(self.codebook.dtype == np.int8)
            sizes = {
                "codes": rows * row_bytes(b, self.in_features),
                "codebook": 0 if affine else rows << b,
                "row_scale": rows * scales,
            }
            sections.append({name: getattr(self, name)[start[name] : start[name] + n] for name, n in sizes.items()})
            start = {name: start[name] + n for name, n in sizes.items()}
        return sections

    def row_classes(self) -> npt.NDArray[np.uint8]:
        """Class of each row in original order, uint8 `[N]`."""
        if self.row_class.size:
            return self.row_class
        return np.full(self.out_features, int(np.argmax(self.rows_per_class)), np.uint8)

    def row_order(self) -> npt.NDArray[np.int64]:
        """Original index of each stored row, `[N]`."""
        if self.row_class.size == 0:
            return np.arange(self.out_features)
        return np.argsort(self.row_class, kind="stable")

    def row_bits(self) -> npt.NDArray[np.uint8]:
        """Width of each row in original order, uint8 `[N]`."""
        return (self.row_classes() % 8 + 1).astype(np.uint8)

    def unpack(self) -> tuple[npt.NDArray[np.uint8], RowLevels]:
        """Undo `pack`: codes, uint8 `[N, K]`, and levels."""
        n, order = self.out_features, self.row_order()
        tables = [class_bits(c) for c, m in enumerate(self.rows_per_class) if m and class_kind(c) == LevelKind.TABLE]
        codes = np.empty((n, self.in_features), np.uint8)
        entries = np.zeros((n, 1 << max(tables) if tables else 0), self.codebook.dtype)
        kind = np.empty(n, np.uint8)
        scale, offset = np.zeros(n, np.float16), np.zeros(n, np.float16)
        start = 0
        for c, section in enumerate(self.class_sections()):
            count = self.rows_per_class[c]
            if not count:
                continue
            b, rows = class_bits(c), order[start : start + count]
            codes[rows] = unpack_codes(section["codes"].reshape(count, -1), b, self.in_features)[:, : self.in_features]
            kind[rows] = class_kind(c)
            if class_kind(c) == LevelKind.AFFINE:
                scale[rows], offset[rows] = section["row_scale"].reshape(count, 2).T
            else:
                entries[rows, : 1 << b] = section["codebook"].reshape(count, -1)
                if self.codebook.dtype == np.int8:
                    scale[rows] = section["row_scale"]
            start += count
        return codes, RowLevels(self.row_bits(), kind, entries, scale, offset)

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The weight matrix that is meant, float32 `[N, K]`: the reference that every kernel is compared with."""
        codes, levels = self.unpack()
        weight = np.take_along_axis(levels.values(), codes.astype(np.intp), axis=1)
        if self.column_scale.size:
            weight *= self.column_scale.astype(np.float32)
        return weight

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors but the bias, which is no weight."""
        return sum(getattr(self, name).nbytes for name in self.TENSORS if name != "bias")

    @property
    def code_bits(self) -> float:
        """Average width of the codes, in bits per weight."""
        return float(np.mean(self.row_bits()))

    @property
    def effective_bits(self) -> float:
        """All bits stored over the number of weights."""
        return 8 * self.nbytes / (self.out_features * self.in_features)

    def validate(self) -> None:
        """Check everything that `docs/format.md` demands.

        Raises:
            PackedFormatError: naming the tensor, what it is and what it should be.
        """
        n, k = self.out_features, self.in_features
        counts = self.rows_per_class
        if n < 1 or k < 1:
            raise PackedFormatError(f"N and K must be at least 1, got N={n}, K={k}")
        if len(counts) != CLASSES or min(counts) < 0 or sum(counts) != n:
            raise PackedFormatError(f"rows_per_class must be {CLASSES} counts with sum N={n}, got {list(counts)}")
        if self.codebook.dtype not in (np.int8, np.float16):
            raise PackedFormatError(f"codebook must be int8 or float16, got {self.codebook.dtype}")
        table = [(class_bits(c), m) for c, m in enumerate(counts) if class_kind(c) == LevelKind.TABLE]
        affine_rows = sum(m for c, m in enumerate(counts) if class_kind(c) == LevelKind.AFFINE)
        table_scales = n - affine_rows if self.codebook.dtype == np.int8 else 0
        mixed = sum(m > 0 for m in counts) > 1
        expected: dict[str, tuple[object, tuple[int, ...]]] = {
            "codes": (np.uint8, (sum(m * row_bytes(class_bits(c), k) for c, m in enumerate(counts)),)),
            "codebook": (self.codebook.dtype, (sum(m << b for b, m in table),)),
            "row_scale": (np.float16, (table_scales + 2 * affine_rows,)),
            "row_class": (np.uint8, (n,) if mixed else (n, 0)),
            "column_scale": (np.float16, (k, 0)),
            "bias": (np.float32, (n, 0)),
        }
        for name, (dtype, sizes) in expected.items():
            tensor = getattr(self, name)
            if tensor.dtype != dtype or tensor.ndim != 1 or tensor.size not in sizes:
                want = f"{np.dtype(dtype)} of {' or '.join(str(s) for s in sizes)} elements"  # type: ignore[call-overload]
                raise PackedFormatError(f"{name} must be {want}, got {tensor.dtype} of shape {list(tensor.shape)}")
        if self.row_class.size and tuple(np.bincount(self.row_class, minlength=CLASSES)) != tuple(counts):
            raise PackedFormatError("row_class does not agree with rows_per_class")
        for name in ("codebook", "row_scale", "column_scale", "bias"):
            if not np.isfinite(getattr(self, name)).all():
                raise PackedFormatError(f"{name} has a value that is not finite")
        if (self.column_scale <= 0).any():
            raise PackedFormatError("column_scale has a value that is not positive")
        self._validate_padding()

    def _validate_padding(self) -> None:
        k = self.in_features
        if k % 32 == 0:
            return
        start = 0
        first, count, lanes = superblocks(k)[-1]
        for c, rows in enumerate(self.rows_per_class):
            b = class_bits(c)
            size = rows * row_bytes(b, k)
            if rows:
                tail = self.codes[start : start + size].reshape(rows, -1)[:, -b * lanes * count :]
                codes = unpack_codes(tail, b, k - first)
                if codes[:, k - first :].any():
                    raise PackedFormatError(f"codes: a padding code of the {b}-bit rows is not 0")
            start += size
