"""How instruction sets look up bytes in a table.

An instruction looks up 2^n entries at once. Larger tables are halved, and the halves' results selected by the top bit
of the code, until they fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tvm import tirx
from tvm.tirx.script import builder as T

from skim_export.bundle.kernels.tir import (
    Buffer,
    Expr,
    cast,
    combine,
    intrinsic,
    lanes_of,
    load,
    mirrored,
    part,
    repeat,
    splat,
)
from skim_export.packed import RowClass

__all__ = ["FLOAT_LOOKUPS", "IN_MEMORY", "LOOKUPS", "FloatLookup", "Lookup", "Lookups"]

REGISTER = 16  # bytes of a vector of entries


@dataclass(frozen=True)
class Lookup:
    """The table lookup of an instruction set.

    Attributes:
        bits: the largest codes that an instruction, or a few, look up without halving the table.
        lanes: codes that the instruction takes, in ascending order; more are cut up, fewer filled up.
        leaf: the instruction: what `load` returned for 2^b entries, b at most `bits`, and codes below 2^b -> entries.
        scalar: entries are loaded one by one, not as vectors.
        most_bits: the largest codes that are worth looking up in this way, and not in memory.
    """

    bits: int
    lanes: tuple[int, ...]
    leaf: Callable[[list[Any], Expr], Expr]
    scalar: bool = False
    most_bits: int = 8

    def load(self, codebook: Buffer, row: Expr, row_class: RowClass) -> list[Any]:
        """The levels (uint8) of a stored row; up to 15 bytes behind its entries are read, too."""
        count, step = row_class.entries, 1 if self.scalar else REGISTER
        stored = [T.Bind(load(codebook, row * count + i, step)) for i in range(0, count, step)]
        if not row_class.memory:
            return stored
        if count < step:  # both halves fit into one vector
            return [T.Bind(repeat(mirrored(part(stored[0], 0, count)), step))]
        return stored + [T.Bind(part(mirrored(vector), step, step)) for vector in reversed(stored)]

    def __call__(self, entries: list[Any], codes: Expr, bits: int) -> Expr:
        """Entries (uint8) for codes (uint8) of `bits` bits."""
        if bits > self.bits:
            half, lanes = len(entries) // 2, lanes_of(codes)
            low = T.Bind(codes & splat((1 << (bits - 1)) - 1, "uint8", lanes))
            upper, lower = self(entries[half:], low, bits - 1), self(entries[:half], low, bits - 1)
            # The top bit as a sign: what blends of x86 select by.
            sign = cast(codes << splat(8 - bits, "uint8", lanes), "int8")
            return tirx.Select(sign < splat(0, "int8", lanes), upper, lower)
        return self._cut(entries, codes)

    def _cut(self, entries: list[Any], codes: Expr) -> Expr:
        lanes = lanes_of(codes)
        width = max((w for w in self.lanes if w <= lanes), default=self.lanes[0])
        if lanes < width:
            return part(self.leaf(entries, repeat(codes, width)), 0, lanes)
        return combine([self.leaf(entries, part(codes, first, width)) for first in range(0, lanes, width)])


def _shuffle_x86(entries: list[Any], codes: Expr) -> Expr:
    lanes = lanes_of(codes)
    name = "llvm.x86.avx2.pshuf.b" if lanes == 32 else "llvm.x86.ssse3.pshuf.b.128"
    return intrinsic("uint8", lanes, name, repeat(entries[0], lanes), codes)


def _permute_x86(entries: list[Any], codes: Expr) -> Expr:
    """Of AVX-512 VBMI: 32 entries from one register, 64 from two."""
    if len(entries) == 1:
        return _shuffle_x86(entries, codes)
    tables = [combine(entries[i : i + 2]) for i in range(0, len(entries), 2)]
    if len(tables) == 1:
        return intrinsic("uint8", 32, "llvm.x86.avx512.permvar.qi.256", tables[0], codes)
    return intrinsic("uint8", 32, "llvm.x86.avx512.vpermi2var.qi.256", tables[0], codes, tables[1])


def _table_aarch64(entries: list[Any], codes: Expr) -> Expr:
    return intrinsic("uint8", lanes_of(codes), f"llvm.aarch64.neon.tbl{len(entries)}", *entries, codes)


def _table_arm(entries: list[Any], codes: Expr) -> Expr:
    halves = [part(e, first, 8) for e in entries for first in (0, 8)]
    return intrinsic("uint8", 8, f"llvm.arm.neon.vtbl{len(halves)}", *halves, codes)


def _select(entries: list[Any], codes: Expr) -> Expr:
    lanes = lanes_of(codes)
    low, high = (splat(entry, "uint8", lanes) for entry in entries)
    return tirx.Select(codes != splat(0, "uint8", lanes), high, low)


@dataclass(frozen=True)
class _InMemory(Lookup):
    """Without such instructions: bytes are loaded one by one."""

    def load(self, codebook: Buffer, row: Expr, row_class: RowClass) -> list[Any]:
        return [codebook, row * row_class.entries, row_class.memory]

    def __call__(self, entries: list[Any], codes: Expr, bits: int) -> Expr:
        codebook, first, memory = entries
        lanes = lanes_of(codes)
        index = splat(first, "int32", lanes)
        if not memory:
            return codebook[cast(codes, "int32") + index]
        # The upper half of the levels: the negatives of the lower one, in reversed order.
        last = splat((1 << bits) - 1, "uint8", lanes)
        is_upper = T.Bind(codes > last >> splat(1, "uint8", lanes))
        stored = T.Bind(codebook[cast(tirx.Select(is_upper, last - codes, codes), "int32") + index])
        return tirx.Select(is_upper, splat(0, "uint8", lanes) - stored, stored)


@dataclass(frozen=True)
class FloatLookup:
    """Looks up float32, for instruction sets whose permutations of them reach far enough.

    Attributes:
        bits: of codes: the instruction takes 2^bits codes at once, and as many entries.
        leaf: the instruction: entries and codes (int32) -> entries.
    """

    bits: int
    leaf: Callable[[Expr, Expr], Expr]

    def table(self, entries: Expr) -> Expr:
        """Entries, repeated where they are fewer than the instruction takes."""
        return T.Bind(repeat(entries, 1 << self.bits))

    def __call__(self, table: Expr, codes: Expr) -> Expr:
        """Entries for codes (int32)."""
        lanes, width = lanes_of(codes), 1 << self.bits
        if lanes < width:
            return part(self.leaf(table, repeat(codes, width)), 0, lanes)
        return combine([self.leaf(table, part(codes, i, width)) for i in range(0, lanes, width)])


def _permute_floats(table: Expr, codes: Expr) -> Expr:
    return intrinsic("float32", 16, "llvm.x86.avx512.permvar.sf.512", table, codes)


FLOAT_LOOKUPS = {
    "none": None,
    "vpermps": FloatLookup(4, _permute_floats),
}


class Lookups(NamedTuple):
    """Of an instruction set."""

    bytes: Lookup
    floats: FloatLookup | None


IN_MEMORY = _InMemory(8, (), lambda entries, codes: codes)
LOOKUPS = {
    "memory": IN_MEMORY,
    "pshufb": Lookup(4, (16, 32), _shuffle_x86),
    "vpermb": Lookup(6, (32,), _permute_x86),
    "tbl": Lookup(6, (8, 16), _table_aarch64),
    "vtbl": Lookup(5, (8,), _table_arm),
    "select": Lookup(1, (1, 2, 4, 8, 16, 32), _select, scalar=True, most_bits=4),
}
