"""How the codes of a row lie in memory: superblocks, lanes and fields (docs/format.md, "The codes of a row")."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "COLUMNS",
    "FIELDS",
    "LANES",
    "Field",
    "lane_columns",
    "pack_codes",
    "row_bytes",
    "stream_fields",
    "superblocks",
    "unpack_codes",
]

LANES = 32  # lanes of a full superblock: one AVX2 register
COLUMNS = 8 * LANES  # columns of a full superblock


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


def stream_fields(bits: int, memory: int = 0) -> list[Field]:
    """Fields of codes that follow each other in the bits of a lane, or of their windows (docs/format.md, "Windows").

    Args:
        bits: width of a code.
        memory: bits before a code, around the end of the lane, that its window also has, below its own.
    """
    fields = []
    for j in range(8):
        left, code_bit = bits + memory, 0
        while left:
            vector, bit = divmod((bits * j - memory + code_bit) % (8 * bits), 8)
            length = min(left, 8 - bit)
            fields.append(Field(j, code_bit, length, vector, bit))
            left, code_bit = left - length, code_bit + length
    return fields


def row_bytes(bits: int, in_features: int) -> int:
    """Bytes that the codes of one row take."""
    return bits * 4 * -(-in_features // 32)


def superblocks(in_features: int) -> list[tuple[int, int, int]]:
    """The runs of equal superblocks of a row: `(first column, number of superblocks, lanes)`."""
    full, rest = divmod(in_features, COLUMNS)
    runs = [(0, full, LANES)] if full else []
    if rest:
        runs.append((full * COLUMNS, 1, 4 * -(-rest // 32)))
    return runs


def lane_columns(in_features: int) -> npt.NDArray[np.int64]:
    """The columns of each lane of a row, `[K / 8, 8]`; K is a multiple of 32."""
    parts = []
    for first, count, lanes in superblocks(in_features):
        columns = first + np.arange(count * 8 * lanes).reshape(count, 8, lanes)
        parts.append(columns.transpose(0, 2, 1).reshape(-1, 8))
    return np.concatenate(parts)


def pack_codes(codes: npt.NDArray[np.uint8], bits: int, fields: list[Field]) -> npt.NDArray[np.uint8]:
    """Pack codes `[R, K]` (values below 2^bits) into `[R, row_bytes(bits, K)]`."""
    rows, columns = codes.shape
    out = []
    for first, count, lanes in superblocks(columns):
        block = codes[:, first : first + count * 8 * lanes]
        padding = count * 8 * lanes - block.shape[1]
        block = np.pad(block, ((0, 0), (0, padding))).reshape(rows, count, 8, lanes)
        packed = np.zeros((rows, count, bits, lanes), np.uint8)
        for f in fields:
            value = (block[:, :, f.code] >> np.uint8(f.code_bit)) & np.uint8((1 << f.length) - 1)
            packed[:, :, f.vector] |= value << np.uint8(f.bit)
        out.append(packed.reshape(rows, -1))
    return np.concatenate(out, axis=1)


def unpack_codes(
    packed: npt.NDArray[np.uint8], bits: int, in_features: int, fields: list[Field]
) -> npt.NDArray[np.uint8]:
    """Undo `pack_codes`: `[R, row_bytes]` to codes `[R, 32 * ceil(K / 32)]`, padding codes included.

    With the fields of windows, to those.
    """
    rows = packed.shape[0]
    out = []
    start = 0
    for _, count, lanes in superblocks(in_features):
        size = count * bits * lanes
        block = packed[:, start : start + size].reshape(rows, count, bits, lanes)
        codes = np.zeros((rows, count, 8, lanes), np.uint8)
        for f in fields:
            value = (block[:, :, f.vector] >> np.uint8(f.bit)) & np.uint8((1 << f.length) - 1)
            codes[:, :, f.code] |= value << np.uint8(f.code_bit)
        out.append(codes.reshape(rows, -1))
        start += size
    return np.concatenate(out, axis=1)
