"""The weights of one row class as a kernel sees them: the levels of a row, and the walk through its codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

from tvm.tirx.script import builder as T

from skim_export.bundle.kernels.codes import unpack
from skim_export.bundle.kernels.lookup import IN_MEMORY, FloatLookup, Lookup
from skim_export.bundle.kernels.tir import (
    Buffer,
    Expr,
    cast,
    constant,
    lanes_of,
    load,
    local,
    mirrored,
    multiply_add,
    prefetch,
    splat,
    store,
    vector_type,
)
from skim_export.packed import COLUMNS, LANES, LevelKind, RowClass

__all__ = ["Piece", "Row", "Weights", "each_piece", "padded", "weight_parameters"]

IN_MEMORY_LANES = 8
CACHE_LINE = 64  # bytes
LEAST_LANES = 4  # the last superblock has a multiple of so many


def padded(K: Expr) -> Expr:
    """Columns of a row with those of padding codes."""
    return (K + 31) // 32 * 32


class Row(ABC):
    """A stored row. What is kept of it is bound when it is made.

    Attributes:
        start: where its codes begin, int64.
    """

    start: Expr

    @abstractmethod
    def look_up(self, codes: Expr) -> Expr:
        """The levels of codes (uint8) as bytes (int8, in vectors of uint8), for many codes at once.

        Rows that have no such levels return the codes, or floats for codes of int32.
        """

    def floats(self, entries: Expr) -> Expr:
        """The levels, float32, of what `look_up` returned."""
        return cast(cast(cast(entries, "int8"), "int32"), "float32")

    @abstractmethod
    def finish(self, total: Expr, x_sum: Expr, unit: Expr) -> Expr:
        """The row's result for a token.

        Args:
            total: of the products of levels and columns.
            x_sum: of the columns.
            unit: of the columns in `total`; those of `x_sum` are as they are.
        """

    @abstractmethod
    def weights(self, floats: Expr) -> Expr:
        """The weights that levels stand for, but for the column scale."""


def weight_parameters(row_class: RowClass) -> dict[str, str]:
    """The parameters that hold the stored rows of one class."""
    codebook = "uint16*" if row_class.codebook == "float16" else "uint8*"
    return {"codes": "uint8*", "codebook": codebook, "row_scale": "float32*"}


class Weights:
    """The stored rows of one class.

    Args:
        row_class: of the rows.
        lookup: of the instruction set.
        float_lookup: the same for floats, if it has one and floats are wanted.
        given: the function's parameters, with those of `weight_parameters`.

    Attributes:
        most_lanes: of a superblock that should be decoded at once.
    """

    def __init__(
        self, row_class: RowClass, lookup: Lookup, float_lookup: FloatLookup | None, given: SimpleNamespace
    ) -> None:
        self.row_class = row_class
        has_floats = float_lookup and row_class.kind == LevelKind.TABLE and row_class.level_bits <= float_lookup.bits
        self._float_lookup = float_lookup if has_floats else None
        self._code_type = "int32" if self._float_lookup else "uint8"
        in_registers = row_class.codebook == "int8" and row_class.level_bits <= lookup.most_bits
        self._lookup = lookup if in_registers else IN_MEMORY
        # From memory, levels come one by one: more of them at once would only need more registers.
        by_register = row_class.kind == LevelKind.AFFINE or self._float_lookup or self._lookup is not IN_MEMORY
        self.most_lanes = LANES if by_register else IN_MEMORY_LANES
        self.codes, self._codebook, self._row_scale = given.codes, given.codebook, given.row_scale

    def codes_of(self, row: Row, piece: Piece) -> list[Expr]:
        """The codes, or windows, of a piece of a row, vectors of `Row.look_up`'s type; first code 0 of each lane."""
        index = row.start + cast(piece.offset, "int64")
        codes = unpack(self.codes, index, piece.stride, self.row_class, piece.lanes, self._code_type)
        return [T.Bind(c) for c in codes]

    def prefetch(self, row: Row, piece: Piece, ahead: int) -> None:
        """Fetch what lies `ahead` bytes behind the codes of a whole superblock; it does not matter what that is."""
        start = row.start + cast(piece.offset, "int64") + ahead
        for line in range(0, self.row_class.bits * LANES, CACHE_LINE):
            prefetch(self.codes, start + line)

    def row(self, index: Expr, K: Expr) -> Row:
        """Stored row `index` (int32) of the class."""
        bits, row = self.row_class.bits, self._row_of_its_kind(index)
        row.start = T.Bind(cast(index, "int64") * cast(padded(K) // 8 * bits, "int64"))
        return row

    def _row_of_its_kind(self, index: Expr) -> Row:
        if self.row_class.kind == LevelKind.AFFINE:
            return _Affine(self.row_class.bits, self._row_scale, index)
        if self._float_lookup is not None:
            return _FloatTable(self.row_class, self._float_lookup, self._codebook, self._row_scale, index)
        if self.row_class.codebook == "int8":
            return _Table(self.row_class, self._lookup, self._codebook, self._row_scale, index)
        return _HalfTable(self.row_class, self._codebook, index)


class _Affine(Row):
    def __init__(self, bits: int, row_scale: Buffer, index: Expr) -> None:
        self._bits = bits
        self._scale, self._offset = T.Bind(row_scale[index * 2]), T.Bind(row_scale[index * 2 + 1])

    def look_up(self, codes: Expr) -> Expr:
        return codes - splat(1 << (self._bits - 1), "uint8", lanes_of(codes))

    def finish(self, total: Expr, x_sum: Expr, unit: Expr) -> Expr:
        return multiply_add(total, self._scale * unit, self._offset * x_sum)

    def weights(self, floats: Expr) -> Expr:
        lanes = lanes_of(floats)
        return multiply_add(floats, splat(self._scale, "float32", lanes), splat(self._offset, "float32", lanes))


class _Table(Row):
    """A codebook of int8."""

    def __init__(self, row_class: RowClass, lookup: Lookup, codebook: Buffer, row_scale: Buffer, index: Expr) -> None:
        self._bits, self._lookup = row_class.level_bits, lookup
        self._entries = lookup.load(codebook, index, row_class)
        self._scale = T.Bind(row_scale[index])

    def look_up(self, codes: Expr) -> Expr:
        return self._lookup(self._entries, codes, self._bits)

    def finish(self, total: Expr, x_sum: Expr, unit: Expr) -> Expr:
        return total * (self._scale * unit)

    def weights(self, floats: Expr) -> Expr:
        return floats * splat(self._scale, "float32", lanes_of(floats))


class _FloatTable(Row):
    """A codebook of either type in registers, as float32; codes are int32."""

    def __init__(
        self, row_class: RowClass, lookup: FloatLookup, codebook: Buffer, row_scale: Buffer, index: Expr
    ) -> None:
        entries = load(codebook, index * row_class.entries, row_class.entries)
        is_half = row_class.codebook == "float16"
        floats = T.Bind(float_of_half(entries) if is_half else super().floats(entries))
        self._lookup = lookup
        self._table = lookup.table(mirrored(floats) if row_class.memory else floats)
        self._scale = constant(1.0, "float32") if is_half else T.Bind(row_scale[index])

    def look_up(self, codes: Expr) -> Expr:
        return self._lookup(self._table, codes)

    def floats(self, entries: Expr) -> Expr:
        return entries

    def finish(self, total: Expr, x_sum: Expr, unit: Expr) -> Expr:
        return total * (self._scale * unit)

    def weights(self, floats: Expr) -> Expr:
        return floats * splat(self._scale, "float32", lanes_of(floats))


class _HalfTable(Row):
    """A codebook of float16, on the stack as float32. There is no integer arithmetic for it."""

    def __init__(self, row_class: RowClass, codebook: Buffer, index: Expr) -> None:
        count = row_class.entries
        self._levels = local("float32", 1 << row_class.level_bits)
        with T.serial(0, count) as code:
            level = T.Bind(float_of_half(codebook[index * count + code]))
            store(self._levels, code, level)
            if row_class.memory:
                store(self._levels, 2 * count - 1 - code, -level)

    def look_up(self, codes: Expr) -> Expr:
        return codes

    def floats(self, entries: Expr) -> Expr:
        return self._levels[cast(entries, "int32")]

    def finish(self, total: Expr, x_sum: Expr, unit: Expr) -> Expr:
        return total

    def weights(self, floats: Expr) -> Expr:
        return floats


def float_of_half(half: Expr) -> Expr:
    """Finite float16 bits to float32, by integer arithmetic: not every target has the type.

    Exponent and fraction, in the places of a float32, make a number that is too small by 2^112.
    """
    lanes = lanes_of(half)
    floats, words = vector_type("float32", lanes), vector_type("uint32", lanes)

    def word(value: int) -> Expr:
        return splat(value, "uint32", lanes)

    bits = T.Bind(cast(half, "uint32"))
    magnitude = T.reinterpret(floats, (bits & word(0x7FFF)) << word(13))
    scaled = T.Bind(T.reinterpret(words, magnitude * splat(2.0**112, "float32", lanes)))
    return T.reinterpret(floats, scaled | ((bits & word(0x8000)) << word(16)))


@dataclass(frozen=True)
class Piece:
    """Some lanes of a superblock.

    Attributes:
        offset: of its first lane's byte in the superblock's first vector, from where the row begins.
        stride: bytes from one vector of the superblock to the next, and columns from one code of a lane to the next.
        column: of its first lane's first code.
        lanes: how many.
    """

    offset: Expr
    stride: Expr | int
    column: Expr
    lanes: int


def each_piece(
    K: Expr, bits: int, lanes: int, blocks: tuple[Expr, Expr], last: Expr, emit: Callable[[Piece], None]
) -> None:
    """Walk through some superblocks of a row, `lanes` lanes at a time; fewer at the end of the last superblock.

    Args:
        K: columns of the row.
        bits: width of its codes.
        lanes: a power of 2 up to 32.
        blocks: the first full superblock, and the one behind the last.
        last: whether the row's last superblock, if it is no full one, is walked through, too.
        emit: what is done with a piece; called while the loops around it are open.
    """
    with T.serial(blocks[0], blocks[1]) as block:
        for first in range(0, LANES, lanes):
            emit(Piece(block * (bits * LANES) + first, LANES, block * COLUMNS + first, lanes))
    tail, full = T.Bind(_tail_lanes(K)), T.Bind(padded(K) // COLUMNS)

    def emit_tail(first: Expr, count: int) -> None:
        emit(Piece(full * (bits * LANES) + first, tail, full * COLUMNS + first, count))

    with T.If(last), T.Then():
        if lanes < LANES:
            with T.serial(0, tail // lanes) as i:
                emit_tail(i * lanes, lanes)
        fewer = lanes // 2
        while fewer >= LEAST_LANES:
            with T.If((tail & fewer) != 0), T.Then():
                emit_tail(tail & (LANES - 2 * fewer), fewer)
            fewer //= 2


def _tail_lanes(K: Expr) -> Expr:
    """Lanes of the last superblock; 0 if it has all 32, be it of padding columns."""
    return padded(K) % COLUMNS // 8
