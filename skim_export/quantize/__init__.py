"""The quantizer: weights and sensitivities of one linear layer in, codes and levels out."""

from skim_export.quantize.allocation import LayerCurves, allocate_bits, even_bits
from skim_export.quantize.levels import CodebookType, round_levels
from skim_export.quantize.methods import (
    AFFINE_BITS,
    DEFAULT_METHOD,
    METHODS,
    Method,
    QuantizedLinear,
    even_levels_pay,
    quantize_linear,
    quantize_uniform,
    width_errors,
)

__all__ = [
    "AFFINE_BITS",
    "DEFAULT_METHOD",
    "METHODS",
    "CodebookType",
    "LayerCurves",
    "Method",
    "QuantizedLinear",
    "allocate_bits",
    "even_bits",
    "even_levels_pay",
    "quantize_linear",
    "quantize_uniform",
    "round_levels",
    "width_errors",
]
