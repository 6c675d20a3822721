"""The weights of one row class as a GPU thread sees them: words of codes, and the levels that codes stand for.

Codes and codebooks are read as 32-bit words, since WGSL knows no smaller type. A word of codes belongs to 4 lanes of a
superblock (docs/format.md, "The codes of a row"), the `b` words of its vectors hold 32 codes, 8 for each lane. These 32
columns are called a block here; a row has ceil(K / 32) of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import or_

from tvm import tirx
from tvm.tirx.script import builder as T

from skim_export.bundle.gpu.tir import Buffer, Expr, buffer, let, scalar, uint32
from skim_export.bundle.row_class import RowClass
from skim_export.packed import COLUMNS, FIELDS, LANES, LevelKind

__all__ = ["CODES", "LANES_OF_WORD", "Block", "Row", "Weights", "block_at", "extract", "step"]

CODES = 8  # of a lane
LANES_OF_WORD = 4
BLOCKS = LANES // LANES_OF_WORD  # of a full superblock

TWO_TO_23 = 0x4B000000  # float32 whose last bit counts 1: a code of up to 23 bits in its mantissa is added to it
TWO_TO_MINUS_24 = (127 - 24) << 23  # as the bits of a float32: TVM writes float constants with 7 digits
TWO_TO_112 = 112 << 23  # difference of the biases of float32's and float16's exponents, in place


@dataclass(frozen=True)
class Block:
    """Where 32 columns of a row are.

    Attributes:
        quad: a quarter of the column of code 0 of the first lane. The 4 lanes have adjacent columns.
        quad_step: a quarter of the columns from one code of a lane to the next.
        word: of a row's words, the first of this block.
        word_step: words from one vector of the superblock to the next.
    """

    quad: Expr
    quad_step: Expr
    word: Expr
    word_step: Expr


def block_at(index: Expr, blocks: Expr, bits: int) -> Block:
    """Block `index` of a row of `blocks` blocks. All superblocks but the last have 8."""
    superblock, within = let("superblock", index >> 3), let("within", index & (BLOCKS - 1))
    width = let("width", T.min(blocks - superblock * BLOCKS, BLOCKS))
    quad = let("quad", superblock * (COLUMNS // 4) + within)
    word = let("word", superblock * (BLOCKS * bits) + within)
    return Block(quad, width, word, width)


def extract(words: list[Expr], bits: int, j: int, lane: int) -> Expr:
    """Code j of a lane (0..3) of a block, uint32.

    Args:
        words: the block's, one of each vector.
        bits: width of the codes.
        j: which of the lane's codes.
        lane: which byte of the words.
    """
    parts = []
    for field in FIELDS[bits]:
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


class Weights:
    """The parameters that hold the stored rows of one class.

    The buffers are those of the whole packed linear; the class begins at `code_start` (words), `codebook_start`
    (entries) and `scale_start` (floats), which are stored for `rows` rows. `K` is the number of columns.
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
        return (self.K + 31) >> 5

    def row(self, index: Expr) -> Row:
        """Stored row `index` of the class."""
        return Row(self, index)


class Row:
    """A stored row.

    Attributes:
        scale: factor of the codebook's entries, or step of affine levels; None for float16 entries.
        offset: of affine levels; None for tables.
    """

    scale: Expr = None
    offset: Expr = None

    def __init__(self, weights: Weights, index: Expr) -> None:
        self._weights, self._bits = weights, weights.row_class.bits
        self._start = let("row_start", weights.code_start + index * (weights.blocks * self._bits))
        if weights.row_class.kind == LevelKind.TABLE:
            self._codebook = let("row_codebook", weights.codebook_start + index * (1 << self._bits))
        if weights.row_class.kind == LevelKind.AFFINE:
            pair = weights.scale_start + index * 2
            self.scale, self.offset = let("scale", weights.row_scale[pair]), let("offset", weights.row_scale[pair + 1])
        elif weights.row_class.codebook == "int8":
            self.scale = let("scale", weights.row_scale[weights.scale_start + index])

    def words(self, block: Block) -> list[Expr]:
        """The words of a block, one of each vector."""
        first = self._start + block.word
        return [let(f"word{v}", self._weights.codes[first + block.word_step * v]) for v in range(self._bits)]

    def level(self, code: Expr) -> Expr:
        """The level that a code (uint32) stands for."""
        if self._weights.row_class.kind == LevelKind.AFFINE:
            return self.scale * step(code, self._bits) + self.offset
        index = self._codebook + code.astype("int32")
        if self._weights.row_class.codebook == "int8":
            return _int8_entry(self._weights.codebook, index) * self.scale
        return _float16_entry(self._weights.codebook, index)


def step(code: Expr, bits: int) -> Expr:
    """code - 2^(bits - 1), exact: two simple instructions, where GPUs convert integers at a quarter of their speed."""
    return T.reinterpret("float32", code | uint32(TWO_TO_23)) - T.float32(2**23 + 2 ** (bits - 1))


def _int8_entry(codebook: Buffer, index: Expr) -> Expr:
    word = codebook[index >> 2]
    top = (word << ((3 - (index & 3)) * 8).astype("uint32")).astype("int32")
    return (top >> 24).astype("float32")


def _float16_entry(codebook: Buffer, index: Expr) -> Expr:
    """In integers: WGSL has float16 only as an extension, and GPUs may take subnormal numbers for 0."""
    half = let("float16_bits", codebook[index >> 1] >> ((index & 1) * 16).astype("uint32"))
    sign = (half & uint32(0x8000)) << uint32(16)
    magnitude = let("magnitude", half & uint32(0x7FFF))
    normal = let("normal", (magnitude << uint32(13)) + uint32(TWO_TO_112))
    subnormal = T.reinterpret("uint32", magnitude.astype("float32") * T.reinterpret("float32", uint32(TWO_TO_MINUS_24)))
    return T.reinterpret("float32", sign | tirx.Select(magnitude < uint32(0x400), subnormal, normal))
