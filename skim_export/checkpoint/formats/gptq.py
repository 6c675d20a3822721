"""GPTQ, as AutoGPTQ and GPTQModel store it: 2, 3, 4 or 8 bits, a scale and a zero point for each group of columns.

`qweight` int32 `[K * bits / 32, N]`, `qzeros` int32 `[K / group, N * bits / 32]`, `scales` `[K / group, N]`, and
`g_idx` `[K]`, which says of each column its group if columns were sorted (`desc_act`). The first version of the format
stores zero points less one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from skim_export.checkpoint.tensors import FLOAT_TYPES

from .format import Format
from .group_size import group_size
from .numbers import WORD, Numbers, PackedColumns, PackedRows, Plain
from .quantized_tensor import QuantizedTensor
from .stored_module import Settings, StoredModule

if TYPE_CHECKING:
    import torch

__all__ = ["GPTQ"]

WIDTHS = (2, 3, 4, 8)
FIRST, SECOND = "gptq", "gptq_v2"


@dataclass(frozen=True)
class _PlusOne:
    """Zero points that were stored less one; 0 less one is the largest number of so many bits."""

    stored: PackedRows

    def read(self, start: int, stop: int) -> torch.Tensor:
        return (self.stored.read(start, stop) + 1) & ((1 << self.stored.bits) - 1)


def _described(settings: Settings) -> str:
    """What to call the format.

    Raises:
        UserError: it is a variant that cannot be read.
    """
    _version(settings)
    for pattern in settings.within("dynamic").entries:
        if not pattern.startswith("-:"):  # modules that are not quantized
            raise settings.error("dynamic", pattern, "modules of other widths cannot be read")
    return f"gptq, {_bits(settings)} bits"


def _weight(module: StoredModule, settings: Settings) -> QuantizedTensor:
    """The weight of a module."""
    bits = _bits(settings)
    codes = module.part("qweight", ("I32",))
    columns, rows = codes.shape[0] * WORD // bits, codes.shape[1]
    size = group_size(settings, columns)
    groups = -(-columns // size)
    zeros = PackedRows(module.part("qzeros", ("I32",), (groups, -(-rows * bits // WORD))), bits, transposed=True)
    scales = module.part("scales", FLOAT_TYPES, (groups, rows))
    ordered = module.has("g_idx") or settings.get("desc_act")
    stored: Numbers = _PlusOne(zeros) if _version(settings) == FIRST else zeros
    return QuantizedTensor(
        codes.file,
        (rows, columns),
        PackedColumns(codes, bits, columns, transposed=True),
        Plain(scales, transposed=True),
        block_rows=1,
        block_columns=size,
        zeros=stored,
        groups=module.part("g_idx", ("I32", "I64"), (columns,)) if ordered else None,
    )


def _bits(settings: Settings) -> int:
    bits: int = settings.one_of("bits", choices=WIDTHS)
    return bits


def _version(settings: Settings) -> str:
    version: str = settings.one_of("checkpoint_format", "format", choices=(FIRST, SECOND), default=FIRST)
    return version


GPTQ = Format(
    codes=("qweight",),
    parts=("qweight", "qzeros", "scales", "g_idx"),
    described=_described,
    weight=_weight,
)
