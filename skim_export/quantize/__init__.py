"""The quantizer: weights and sensitivities of one linear layer in, codes and levels out."""

from skim_export.quantize.allocation import LayerCurves, allocate_bits, even_bits
from skim_export.quantize.levels import CodebookType, round_levels
from skim_export.quantize.methods import (
    AFFINE_BITS,
    DEFAULT_METHOD,
    METHODS,
    Columns,
    Method,
    QuantizedLinear,
    even_levels_pay,
    method_named,
    quantize_linear,
    quantize_rows,
    quantize_uniform,
    width_errors,
)
from skim_export.quantize.refinement import Coupling, damped
from skim_export.quantize.scaling import fit_column_scale, power_of_two_scale, unit_column_scale

__all__ = [
    "AFFINE_BITS",
    "DEFAULT_METHOD",
    "METHODS",
    "CodebookType",
    "Columns",
    "Coupling",
    "LayerCurves",
    "Method",
    "QuantizedLinear",
    "allocate_bits",
    "damped",
    "even_bits",
    "even_levels_pay",
    "fit_column_scale",
    "method_named",
    "power_of_two_scale",
    "quantize_linear",
    "quantize_rows",
    "quantize_uniform",
    "round_levels",
    "unit_column_scale",
    "width_errors",
]
