"""The weights of one row class as a GPU thread sees them: words of codes, and the levels that codes stand for.

Codes and codebooks are read as 32-bit words, since WGSL knows no smaller type. A word of codes belongs to 4 lanes of a
superblock (docs/format.md, "The codes of a row"), the b words of its vectors hold 32 codes, 8 for each lane. These 32
columns are called a *block* here; a row has ceil(K / 32) of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import or_

from skim_export.bundle.gpu.tir import (
    Buffer,
    Expr,
    buffer,
    float32,
    let,
    minimum,
    reinterpret,
    scalar,
    select,
    uint32,
)
from skim_export.packed import COLUMNS, LANES, LevelKind, RowClass

__all__ = ["CODES", "LANES_OF_WORD", "Block", "RowCodes", "RowLevels", "Weights", "block_at", "code_of", "steps"]

CODES = COLUMNS // LANES  # of a lane
LANES_OF_WORD = 4
BLOCKS = LANES // LANES_OF_WORD  # of a full superblock

# Bits of float32 numbers.
TWO_TO_23 = (127 + 23) << 23  # the last bit of its mantissa counts 1
TWO_TO_MINUS_24 = (127 - 24) << 23
FLOAT16_BIAS = (127 - 15) << 23  # what its exponents lack


@dataclass(frozen=True)
class Block:
    """32 columns of a row.

    Attributes:
        superblock: that it is in.
        within: its place among the blocks of the superblock.
        width: blocks of the superblock: 8, or fewer in the last one of a row.
    """

    superblock: Expr
    within: Expr
    width: Expr

    def quad(self, j: int | Expr) -> Expr:
        """A quarter of the first of the 4 adjacent columns that code j of the 4 lanes belongs to."""
        return self.superblock * (COLUMNS // 4) + self.width * j + self.within

    def word(self, v: int, bits: int) -> Expr:
        """The word of vector v, counted from the row's first."""
        return self.superblock * (BLOCKS * bits) + self.width * v + self.within


def block_at(index: Expr, blocks: Expr) -> Block:
    """Block `index` of a row that has `blocks`."""
    superblock = let("superblock", index // BLOCKS)
    return Block(superblock, let("within", index % BLOCKS), let("width", minimum(blocks - superblock * BLOCKS, BLOCKS)))


def code_of(words: list[Expr], row_class: RowClass, j: int, lane: int = 0) -> Expr:
    """Code j of a lane, or its window, uint32.

    Args:
        words: of a block, one of each vector.
        row_class: of the row.
        j: which of the lane's codes.
        lane: which byte of the words.
    """
    parts = []
    for field in row_class.window_fields:
        if field.code != j:
            continue
        right = 8 * lane + field.bit - field.code_bit
        value = words[field.vector]
        if right > 0:
            value = value >> uint32(right)
        elif right < 0:
            value = value << uint32(-right)
        parts.append(value & uint32(((1 << field.length) - 1) << field.code_bit))
    return reduce(or_, parts)


def steps(code: Expr, bits: int) -> Expr:
    """The steps of an affine level, code - 2^(bits - 1), exact.

    The code is put into a mantissa: these are two simple instructions, where GPUs convert integers at a fraction of
    their speed.
    """
    return reinterpret("float32", code | uint32(TWO_TO_23)) - float32(2**23 + 2 ** (bits - 1))


class Weights:
    """The parameters that hold the stored rows of one class.

    The buffers are those of the whole packed linear. In them the class has `rows` rows; it begins at `code_start`
    (words), `codebook_start` (entries) and `scale_start` (floats). `K` is the number of columns.
    """

    codebook: Buffer = None
    row_scale: Buffer = None
    codebook_start: Expr = None
    scale_start: Expr = None

    def __init__(self, row_class: RowClass) -> None:
        self.row_class = row_class
        self.codes, self.code_start = buffer("codes", "uint32"), scalar("code_start")
        if row_class.kind == LevelKind.TABLE:
            self.codebook, self.codebook_start = buffer("codebook", "uint32"), scalar("codebook_start")
        if row_class.codebook != "float16":
            self.row_scale, self.scale_start = buffer("row_scale", "float32"), scalar("scale_start")
        self.rows, self.K = scalar("rows"), scalar("K")

    @property
    def blocks(self) -> Expr:
        """Blocks of a row."""
        return (self.K + 31) // 32

    def existing(self, row: Expr) -> Expr:
        """A stored row that may be read in the place of one that may not exist."""
        return let("row", minimum(row, self.rows - 1))


class RowCodes:
    """The codes of a stored row of the class."""

    def __init__(self, weights: Weights, row: Expr, blocks: Expr) -> None:
        self._codes, self._bits = weights.codes, weights.row_class.bits
        self._start = let("first_word", weights.code_start + row * (blocks * self._bits))

    def words(self, block: Block) -> list[Expr]:
        """The words of a block, one of each vector."""
        return [let(f"word{v}", self._codes[self._start + block.word(v, self._bits)]) for v in range(self._bits)]


class RowLevels:
    """The levels of a stored row of the class.

    Attributes:
        scale: factor of the codebook's entries, or step of affine levels; None for float16 entries.
        offset: of affine levels; None for tables.
    """

    scale: Expr = None
    offset: Expr = None

    def __init__(self, weights: Weights, row: Expr) -> None:
        self._row_class, self._codebook = weights.row_class, weights.codebook
        if self._row_class.kind == LevelKind.AFFINE:
            first = weights.scale_start + row * 2
            self.scale, self.offset = (
                let("scale", weights.row_scale[first]),
                let("offset", weights.row_scale[first + 1]),
            )
            return
        self._start = let("first_entry", weights.codebook_start + row * self._row_class.entries)
        if self._row_class.codebook == "int8":
            self.scale = let("scale", weights.row_scale[weights.scale_start + row])

    def __getitem__(self, code: Expr) -> Expr:
        """The level that a code (uint32) stands for."""
        if self._row_class.kind == LevelKind.AFFINE:
            return self.scale * steps(code, self._row_class.bits) + self.offset
        if not self._row_class.memory:
            return self._entry(code)
        last = uint32((1 << self._row_class.level_bits) - 1)
        is_upper = let(
            "is_upper", code > last >> uint32(1)
        )  # of the windows, whose levels are the lower half's negatives
        level = let("level", self._entry(select(is_upper, last - code, code)))
        return select(is_upper, -level, level)

    def _entry(self, number: Expr) -> Expr:
        index = let("entry", self._start + number.astype("int32"))
        if self._row_class.codebook == "int8":
            return _int8_entry(self._codebook, index) * self.scale
        return _float16_entry(self._codebook, index)


def _int8_entry(codebook: Buffer, index: Expr) -> Expr:
    """Its byte goes to the top of the word, and down again with its sign."""
    top = codebook[index >> 2] << ((3 - (index & 3)) * 8).astype("uint32")
    return (top.astype("int32") >> 24).astype("float32")


def _float16_entry(codebook: Buffer, index: Expr) -> Expr:
    """Decoded as integer: WGSL has float16 only as an extension, and GPUs may take subnormal numbers for 0."""
    bits = let("float16_bits", codebook[index >> 1] >> ((index & 1) * 16).astype("uint32"))
    sign = (bits & uint32(0x8000)) << uint32(16)
    magnitude = let("magnitude", bits & uint32(0x7FFF))
    normal = (magnitude << uint32(13)) + uint32(FLOAT16_BIAS)
    subnormal = magnitude.astype("float32") * reinterpret("float32", uint32(TWO_TO_MINUS_24))
    is_subnormal = magnitude < uint32(1 << 10)
    return reinterpret("float32", sign | select(is_subnormal, reinterpret("uint32", subnormal), normal))
