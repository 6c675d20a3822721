"""Weights in floats of 8 bits with a scale for each block, row or tensor, as DeepSeek, Qwen and Mistral store them.

`weight` F8_E4M3 `[N, K]`; `weight_scale_inv`, which in spite of its name is what to multiply by: `[ceil(N / 128),
ceil(K / 128)]` for blocks, a number for a tensor. Names and defaults are those of transformers' integration
`finegrained_fp8`.
"""

from __future__ import annotations

from skim_export.checkpoint.tensors import FLOAT_TYPES

from .format import Format
from .numbers import Plain
from .quantized_tensor import QuantizedTensor
from .stored_module import Settings, StoredModule

__all__ = ["FP8"]

FLOAT8 = "F8_E4M3"
SCALES = (*FLOAT_TYPES, "F8_E8M0")
BLOCK = [128, 128]


def _described(settings: Settings) -> str:
    """What to call the format.

    Raises:
        UserError: it is a variant that cannot be read.
    """
    _block(settings)
    return "fp8"


def _weight(module: StoredModule, settings: Settings) -> QuantizedTensor:
    """The weight of a module."""
    codes, block = module.part("weight", (FLOAT8,)), _block(settings)
    rows, columns = codes.shape
    if block is None:
        scale = module.stored.get(f"{module.name}.weight_scale_inv")
        block = 1 if scale is not None and rows in scale.shape else rows, columns
    scales = module.grid("weight_scale_inv", SCALES, -(-rows // block[0]), -(-columns // block[1]))
    return QuantizedTensor(codes.file, (rows, columns), Plain(codes), Plain(scales), *block)


def _block(settings: Settings) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None if a row or a tensor does."""
    whole = settings.entries.get("weight_block_size", BLOCK) is None
    return None if whole else settings.pair("weight_block_size", default=BLOCK)


FP8 = Format(
    codes=("weight",),
    parts=("weight", "weight_scale_inv"),
    described=_described,
    weight=_weight,
    ignored=("activation_scale",),
)
