"""The C interface between the kernels and the runtime of a bundle."""

from __future__ import annotations

from collections.abc import Iterable

from skim_export.bundle.row_class import RowClass

__all__ = ["kernels_header", "prepared_bytes"]

HEADER = """\
// The kernels of this bundle, compiled in skim_kernels.o, on tensors of weights.bin. Rows are independent: threads may
// compute any parts of them side by side.
#pragma once

#include <stdint.h>

// Bytes of a token that is prepared for a product with K columns: a multiple of 64, as its address must be.
static inline int64_t skim_prepared_bytes(int32_t K) {
  return (((int64_t)K + 31) / 32 * 32 * 4 + 4 + 63) / 64 * 64;  // x * column_scale, padded with zeros, and its sum
}

void skim_prepare(const float *x,             // [M][K]
                  const float *column_scale,  // [K]
                  void *prepared,             // [M] prepared tokens
                  int32_t M, int32_t K);
"""

KERNELS = """
void skim_matmul_{name}(const uint8_t *codes,      // of the class
                        const void *codebook,      // {codebook}
                        const float *row_scale,    // {row_scale}
                        const int32_t *row_index,  // [rows]: each row's place within a token of y
                        const void *x,             // [M] prepared tokens
                        float *y,                  // [M][y_stride], without bias
                        int32_t M, int32_t K, int32_t y_stride,
                        int32_t begin, int32_t end);  // rows of the class

void skim_gather_{name}(const uint8_t *codes, const void *codebook, const float *row_scale,
                        float *y,  // [K], without column scale
                        int32_t K, int32_t row);
"""


def prepared_bytes(in_features: int) -> int:
    """Bytes of a token that is prepared for a product with K columns: as many floats, padded to 32, and their sum."""
    return -(-4 * (32 * -(-in_features // 32) + 1) // 64) * 64


def kernels_header(classes: Iterable[RowClass]) -> str:
    """skim_kernels.h for the kernels of these row classes."""
    header = HEADER
    for row_class in classes:
        name, bits = row_class.name, row_class.bits
        codebook = "not read" if row_class.codebook is None else f"[rows][{1 << bits}] {row_class.codebook}"
        row_scale = {"int8": "[rows]", "float16": "not read", None: "[rows][2]: scale and offset"}[row_class.codebook]
        header += KERNELS.format(name=name, codebook=codebook, row_scale=row_scale)
    return header
