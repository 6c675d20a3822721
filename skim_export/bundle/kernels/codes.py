"""The codes of a superblock (docs/format.md, "The codes of a row")."""

from __future__ import annotations

from functools import reduce

from tvm.tirx.script import builder as T

from skim_export.bundle.kernels.tir import Buffer, Expr, cast, load, splat
from skim_export.packed import COLUMNS, LANES, RowClass

__all__ = ["CODES", "unpack"]

CODES = COLUMNS // LANES  # of a lane


def unpack(
    packed: Buffer, index: Expr, stride: Expr | int, row_class: RowClass, lanes: int, dtype: str = "uint8"
) -> list[Expr]:
    """The codes, or windows, of `lanes` lanes of a superblock, which begin at `index`: 8 vectors.

    The first is for code 0 of each lane.

    Args:
        packed: the codes of all rows.
        index: of the first lane's byte in the superblock's first vector.
        stride: bytes from one vector of the superblock to the next.
        row_class: of the rows.
        lanes: how many lanes to take.
        dtype: of the codes.
    """
    vectors = [T.Bind(cast(load(packed, index + stride * i, lanes), dtype)) for i in range(row_class.bits)]
    codes = []
    for j in range(CODES):
        fields = []
        for f in row_class.window_fields:
            if f.code != j:
                continue
            right = f.bit - f.code_bit
            value = vectors[f.vector]
            if right > 0:
                value = value >> splat(right, dtype, lanes)
            elif right < 0:
                value = value << splat(-right, dtype, lanes)
            if f.length < 8:
                value = value & splat(((1 << f.length) - 1) << f.code_bit, dtype, lanes)
            fields.append(value)
        codes.append(reduce(lambda a, b: a | b, fields))
    return codes
