"""The C interface between the kernels and the runtime of a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from skim_export.packed import RowClass

__all__ = ["Kernels", "Product", "gather_name", "kernels_header", "prepare_name", "prepared_bytes"]

HEADER = """\
// The kernels of this bundle, compiled in skim_kernels.o, on tensors of weights.bin. Rows are independent: threads may
// compute any parts of them side by side.
#pragma once

#include <stdint.h>

// Bytes of a token that is prepared for a product with K columns: a multiple of 64, as its address must be.
static inline int64_t skim_prepared_bytes(int32_t K) {
  return ((((int64_t)K + 31) / 32 * 32 + 1) * 4 + 63) / 64 * 64;  // padded to 32 columns of 4 bytes, and a sum
}

void skim_prepare(const float *x,             // [M][K]
                  const float *column_scale,  // [K]
                  void *prepared,             // [M] prepared tokens
                  int32_t M, int32_t K);

// The same for kernels with integer arithmetic: tokens are rounded to 16 bits.
void skim_prepare_integer(const float *x, const float *column_scale, void *prepared, int32_t M, int32_t K);
"""

MATMUL = """
void {function}(const uint8_t *codes,      // of the class
                const void *codebook,      // {codebook}
                const float *row_scale,    // {row_scale}
                const int32_t *row_index,  // [rows]: each row's place within a token of y
                const void *x,             // [M] tokens, prepared for {arithmetic} arithmetic
                float *y,                  // [M][y_stride], without bias
                int32_t M, int32_t K, int32_t y_stride,
                int32_t begin, int32_t end);  // rows of the class
"""

GATHER = """
void {function}(const uint8_t *codes, const void *codebook, const float *row_scale,
                float *y,  // [K], without column scale
                int32_t K, int32_t row);
"""


class Product(NamedTuple):
    """What a kernel multiplies with tokens: the rows of a class in a matrix of N rows and K columns.

    With `integer` tokens are rounded to integers (docs/format.md, "Arithmetic"); codebooks of float16 have no such
    product.
    """

    row_class: RowClass
    integer: bool
    N: int
    K: int


@dataclass(frozen=True)
class Kernels:
    """The compiled kernels of a bundle.

    Attributes:
        object_file: its bytes.
        matmuls: the function in it that computes each product.
    """

    object_file: bytes
    matmuls: Mapping[Product, str]


def prepared_bytes(K: Any) -> Any:
    """Bytes of a token that is prepared for a product with K columns, an int or an expression of TVM.

    It has room for as many floats, padded to 32, and their sum, and is a multiple of 64.
    """
    return (((K + 31) // 32 * 32 + 1) * 4 + 63) // 64 * 64


def prepare_name(integer: bool) -> str:
    """The function that prepares tokens for one arithmetic."""
    return "skim_prepare_integer" if integer else "skim_prepare"


def gather_name(row_class: RowClass) -> str:
    """The function that reads one row of a class."""
    return f"skim_gather_{row_class.name}"


def kernels_header(matmuls: Mapping[Product, str], gathers: Iterable[RowClass]) -> str:
    """skim_kernels.h for some products, and for classes whose rows are read one by one, too."""
    header = HEADER
    for function, product in sorted({function: product for product, function in matmuls.items()}.items()):
        row_class = product.row_class
        codebook = f"[rows][{row_class.entries}] {row_class.codebook}" if row_class.entries else "not read"
        row_scale = ("not read", "[rows]", "[rows][2]: scale and offset")[row_class.scales]
        arithmetic = "integer" if product.integer else "float"
        header += MATMUL.format(function=function, codebook=codebook, row_scale=row_scale, arithmetic=arithmetic)
    for row_class in gathers:
        header += GATHER.format(function=gather_name(row_class))
    return header
