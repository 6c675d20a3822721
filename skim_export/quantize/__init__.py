"""The quantizer: weights and sensitivities of one linear in, codes and levels out."""

from skim_export.quantize.allocation import LinearCurves, allocate_bits, even_bits
from skim_export.quantize.level_fits import AFFINE_BITS, MOST_FREE_LEVELS, even_levels_pay
from skim_export.quantize.levels import round_levels
from skim_export.quantize.linear_data import LinearArrays, LinearData, Statistics
from skim_export.quantize.methods import (
    DEFAULT_METHOD,
    METHODS,
    ONE_WIDTH,
    Columns,
    Method,
    QuantizedLinear,
    fisher_objective,
    layer_objective,
    method_named,
    quantize_linear,
)
from skim_export.quantize.refinement import Coupling, damped
from skim_export.quantize.scaling import fit_column_scale, power_of_two_scale, unit_column_scale

__all__ = [
    "AFFINE_BITS",
    "DEFAULT_METHOD",
    "METHODS",
    "MOST_FREE_LEVELS",
    "ONE_WIDTH",
    "Columns",
    "Coupling",
    "LinearArrays",
    "LinearCurves",
    "LinearData",
    "Method",
    "QuantizedLinear",
    "Statistics",
    "allocate_bits",
    "damped",
    "even_bits",
    "even_levels_pay",
    "fisher_objective",
    "fit_column_scale",
    "layer_objective",
    "method_named",
    "power_of_two_scale",
    "quantize_linear",
    "round_levels",
    "unit_column_scale",
]
