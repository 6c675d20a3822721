"""AWQ, as AutoAWQ's "gemm" layout stores it: 4 bits, a scale and a zero point for each group of columns.

`qweight` int32 `[K, N / 8]`, `qzeros` int32 `[K / group, N / 8]`, `scales` `[K / group, N]`. A word holds the numbers
of eight rows of W, the even ones in its low half.
"""

from __future__ import annotations

from skim_export.checkpoint.tensors import FLOAT_TYPES

from .format import Format
from .group_size import group_size
from .numbers import PackedRows, Plain
from .quantized_tensor import QuantizedTensor
from .stored_module import Settings, StoredModule

__all__ = ["AWQ"]

BITS = 4
PER_WORD = 8
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # in a word, of the rows that it holds


def _described(settings: Settings) -> str:
    """What to call the format.

    Raises:
        UserError: it is a variant that cannot be read.
    """
    settings.one_of("version", "format", choices=("gemm", "GEMM"), default="gemm")
    settings.one_of("bits", "w_bit", choices=(BITS,), default=BITS)
    return f"awq, {BITS} bits"


def _weight(module: StoredModule, settings: Settings) -> QuantizedTensor:
    """The weight of a module."""
    codes = module.part("qweight", ("I32",))
    columns, rows = codes.shape[0], codes.shape[1] * PER_WORD
    size = group_size(settings, columns)
    groups = -(-columns // size)
    zeros = module.part("qzeros", ("I32",), (groups, rows // PER_WORD))
    scales = module.part("scales", FLOAT_TYPES, (groups, rows))
    return QuantizedTensor(
        codes.file,
        (rows, columns),
        PackedRows(codes, BITS, transposed=True, order=PLACES),
        Plain(scales, transposed=True),
        block_rows=1,
        block_columns=size,
        zeros=PackedRows(zeros, BITS, transposed=True, order=PLACES),
    )


AWQ = Format(
    codes=("qweight",),
    parts=("qweight", "qzeros", "scales"),
    described=_described,
    weight=_weight,
)
