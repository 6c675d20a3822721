"""Packed linears of random bytes: they take no longer to make than to fill, so measurements can have large ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from skim_export.packed import CLASSES, CodebookType, PackedLinear, RowClass, all_classes, pack_codes, unpack_codes

__all__ = ["random_linear"]


def random_linear(
    random: np.random.Generator,
    rows: int,
    columns: int,
    shares: Mapping[int, float],
    codebook: CodebookType = "int8",
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
    classes = list(zip(all_classes(codebook), counts.tolist(), strict=True))
    entry_count = sum(n * c.entries for c, n in classes)
    if codebook == "int8":
        entries = random.integers(-127, 128, entry_count, np.int8)
    else:
        entries = random.normal(0, 0.5, entry_count).astype(np.float16)
    order = random.permutation(np.repeat(np.arange(CLASSES, dtype=np.uint8), counts))
    packed = PackedLinear(
        out_features=rows,
        in_features=columns,
        rows_per_class=tuple(int(n) for n in counts),
        codes=np.concatenate([_codes(random, c, n, columns) for c, n in classes]),
        codebook=entries,
        row_scale=random.uniform(1e-3, 1e-2, sum(n * c.scales for c, n in classes)).astype(np.float16),
        row_class=order if np.count_nonzero(counts) > 1 else np.zeros(0, np.uint8),
        column_scale=random.uniform(0.5, 2, columns if column_scale else 0).astype(np.float16),
        bias=random.standard_normal(rows if bias else 0, np.float32),
    )
    packed.validate()
    return packed


def _codes(random: np.random.Generator, row_class: RowClass, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Packed codes of some rows of a class, one after the other."""
    bits, size, fields = row_class.bits, row_class.row_bytes(columns), row_class.fields
    codes = np.frombuffer(random.bytes(rows * size), np.uint8)
    if rows and columns % 32:  # what pads a row must be 0
        unpadded = unpack_codes(codes.reshape(rows, size), bits, columns, fields)[:, :columns]
        codes = pack_codes(unpadded, bits, fields).reshape(-1)
    return codes
