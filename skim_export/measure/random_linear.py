"""Packed linears of random bytes: they take no longer to make than to fill, so measurements can have large ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from skim_export.packed import (
    CLASSES,
    LevelKind,
    PackedLinear,
    class_bits,
    class_kind,
    pack_codes,
    row_bytes,
    unpack_codes,
)

__all__ = ["random_linear"]


def random_linear(
    random: np.random.Generator,
    rows: int,
    columns: int,
    shares: Mapping[int, float],
    codebook: Literal["int8", "float16"] = "int8",
    *,
    column_scale: bool = False,
    bias: bool = False,
) -> PackedLinear:
    """A packed linear `[rows, columns]` whose classes are shuffled among its rows.

    Args:
        random: where the weights come from.
        rows: N.
        columns: K.
        shares: share of the rows by class; the last class gets what rounding leaves.
        codebook: type of the codebook's entries.
        column_scale: whether the columns have scales.
        bias: whether the rows have one.
    """
    counts = np.zeros(CLASSES, np.int64)
    for row_class, share in shares.items():
        counts[row_class] = int(share * rows)
    counts[max(shares)] += rows - counts.sum()
    table = [(int(counts[c]), class_bits(c)) for c in range(CLASSES) if class_kind(c) == LevelKind.TABLE]
    table_rows, entry_count = sum(n for n, _ in table), sum(n << bits for n, bits in table)
    if codebook == "int8":
        entries, table_scales = random.integers(-127, 128, entry_count, np.int8), table_rows
    else:
        entries, table_scales = random.normal(0, 0.5, entry_count).astype(np.float16), 0
    order = random.permutation(np.repeat(np.arange(CLASSES, dtype=np.uint8), counts))
    packed = PackedLinear(
        out_features=rows,
        in_features=columns,
        rows_per_class=tuple(int(n) for n in counts),
        codes=np.concatenate([_codes(random, int(n), columns, class_bits(c)) for c, n in enumerate(counts)]),
        codebook=entries,
        row_scale=random.uniform(1e-3, 1e-2, table_scales + 2 * (rows - table_rows)).astype(np.float16),
        row_class=order if np.count_nonzero(counts) > 1 else np.zeros(0, np.uint8),
        column_scale=random.uniform(0.5, 2, columns if column_scale else 0).astype(np.float16),
        bias=random.standard_normal(rows if bias else 0, np.float32),
    )
    packed.validate()
    return packed


def _codes(random: np.random.Generator, rows: int, columns: int, bits: int) -> npt.NDArray[np.uint8]:
    """Packed codes of some rows, one after the other."""
    size = row_bytes(bits, columns)
    codes = np.frombuffer(random.bytes(rows * size), np.uint8)
    if rows and columns % 32:  # what pads a row must be 0
        codes = pack_codes(unpack_codes(codes.reshape(rows, size), bits, columns)[:, :columns], bits).reshape(-1)
    return codes
