import numpy as np
import pytest

from skim_export.packed import LevelKind, PackedLinear
from skim_export.quantize import (
    AFFINE_BITS,
    METHODS,
    ONE_WIDTH,
    Columns,
    Coupling,
    LinearArrays,
    damped,
    even_levels_pay,
)
from skim_export.quantize import quantize_linear as quantize_with
from skim_export.quantize.levels import fit_affine, fit_tables
from skim_export.quantize.scaling import unit_column_scale
from skim_export.quantize.solver import WeightRows
from skim_export.work.resources import Resources
from skim_runtime.errors import UserError

DIAGONAL = ["skim", "squeezellm", "rtn"]  # methods whose objective is a sum over the weights


def quantize_linear(weight, sensitivity, bits, method, **options):
    correlation = np.full((weight.shape[1], weight.shape[1]), 0.3, np.float32)
    np.fill_diagonal(correlation, 1)
    sensitivity = sensitivity if METHODS[method].objective else None
    return quantize_with(weight, sensitivity, bits, METHODS[method], correlation=correlation, **options)


def quantize_uniform(weight, bits=8, **options):
    return quantize_with(weight, None, np.full(len(weight), bits, np.uint8), ONE_WIDTH, **options)


def random_layer(rng, rows, columns):
    spread = np.exp(rng.normal(0, 0.3, columns))
    weight = (rng.standard_t(5, (rows, columns)) * spread * 0.05).astype(np.float32)
    fisher = np.exp(rng.normal(-8, 2, (rows, columns))).astype(np.float32)
    return weight, fisher


def stored_errors(weight, fisher, quantized):
    weights = 1 if fisher is None else fisher
    return (weights * (weight.astype(np.float64) - quantized.pack().dequantize()) ** 2).sum(axis=1)


@pytest.mark.parametrize("method", DIAGONAL)
@pytest.mark.parametrize("codebook", ["int8", "float16"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (31, 33), (8, 1000), (64, 192), (33, 31)])
def test_packs_what_it_measured(method, codebook, rows, columns):
    rng = np.random.default_rng(rows * columns)
    weight, fisher = random_layer(rng, rows, columns)
    bits = rng.integers(1, 9, rows).astype(np.uint8)
    quantized = quantize_linear(weight, fisher, bits, method, codebook=codebook)
    packed = quantized.pack(np.ones(rows, np.float32))
    np.testing.assert_array_equal(packed.row_bits(), bits)
    assert packed.bias.sum() == rows
    affine = (quantized.levels.kind == LevelKind.AFFINE) | (method == "rtn")
    np.testing.assert_array_equal(affine, (bits >= AFFINE_BITS) | (method == "rtn"))
    expected = stored_errors(weight, None if method == "rtn" else fisher, quantized)
    np.testing.assert_allclose(quantized.errors, expected, rtol=1e-5, atol=1e-12 * expected.max())


def test_methods_in_order():
    rng = np.random.default_rng(0)
    weight, fisher = random_layer(rng, 100, 200)
    bits = np.full(100, 3, np.uint8)
    errors = [stored_errors(weight, fisher, quantize_linear(weight, fisher, bits, method)).sum() for method in DIAGONAL]
    assert errors[0] < 0.95 * errors[1]
    assert errors[1] < 0.6 * errors[2]


def test_rtn_is_rounding_between_minimum_and_maximum():
    rng = np.random.default_rng(1)
    weight, _ = random_layer(rng, 20, 300)
    quantized = quantize_linear(weight, None, np.full(20, 4, np.uint8), "rtn")
    low, high = weight.min(axis=1, keepdims=True), weight.max(axis=1, keepdims=True)
    step = (high - low) / 15
    expected = np.rint((weight - low) / step)
    assert (quantized.codes != expected).mean() < 0.01  # scale and offset are rounded to float16
    assert np.abs(quantized.pack().dequantize() - weight).max() < 0.52 * step.max()


def test_width_errors_are_what_quantization_reaches():
    rng = np.random.default_rng(2)
    weight, fisher = random_layer(rng, 30, 256)
    widths = [2, 3, 5, 7, 8]
    curves = METHODS["squeezellm"].width_errors(LinearArrays(weight, fisher), widths, Resources(2))
    assert curves.shape == (30, 5)
    for column, b in enumerate(widths):  # curves do not know of the rounding of entries, which tells at 5 bits
        errors = quantize_linear(weight, fisher, np.full(30, b, np.uint8), "squeezellm").errors
        np.testing.assert_allclose(curves[:, column].sum(), errors.sum(), rtol=0.25 if b == 5 else 0.02)


@pytest.mark.parametrize("bits", range(1, 9))
def test_uniform(bits):
    rng = np.random.default_rng(3)
    weight = rng.normal(0, 0.1, (70, 64)).astype(np.float32)
    quantized = quantize_uniform(weight, bits)
    np.testing.assert_allclose(quantized.errors, stored_errors(weight, None, quantized), rtol=1e-5)
    relative = quantized.errors.sum() / (weight**2).sum()
    assert relative < 1.1 * 4.0**-bits * 2


@pytest.mark.parametrize("columns", [64, 4096])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_uniform_takes_codebooks_only_where_they_earn_their_bits(bits, columns):
    """Free levels cost bits and lower the error: what is taken is better for normal weights, a bit being worth 6 dB."""
    weight = np.random.default_rng(9).normal(0, 0.1, (200, columns)).astype(np.float32)
    layer, row_bits = WeightRows(weight, None), np.full(200, bits, np.uint8)
    taken = quantize_uniform(weight, bits).pack()
    assert taken.rows_per_class[bits - 1 + 8 * even_levels_pay(bits, columns, "int8")] == 200
    worth = []
    for codes, levels, errors in (fit_tables(layer, row_bits, "int8"), fit_affine(layer, row_bits)):
        packed = PackedLinear.pack(codes, levels)
        worth.append(errors.sum() * 4.0**packed.effective_bits)
    assert (worth[1] < 1.01 * worth[0]) if even_levels_pay(bits, columns, "int8") else (worth[0] < 1.01 * worth[1])


@pytest.mark.parametrize("method", METHODS)
def test_zeros_everywhere(method):
    weight = np.zeros((5, 40), np.float32)
    quantized = quantize_linear(weight, weight, np.array([1, 2, 3, 7, 8], np.uint8), method)
    np.testing.assert_array_equal(quantized.pack().dequantize(), 0)


def test_rows_that_no_token_touched_keep_their_weights():
    rng = np.random.default_rng(4)
    weight, fisher = random_layer(rng, 10, 100)
    fisher[3] = 0
    for method in ("skim", "squeezellm"):
        quantized = quantize_linear(weight, fisher, np.full(10, 4, np.uint8), method)
        difference = quantized.pack().dequantize()[3] - weight[3]
        assert (difference**2).sum() < 0.02 * (weight[3] ** 2).sum()
        assert quantized.errors[3] == 0


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 100.0])
def test_weights_of_any_size(size):
    rng = np.random.default_rng(5)
    weight, fisher = random_layer(rng, 20, 100)
    quantized = quantize_linear((weight * size).astype(np.float32), fisher, np.full(20, 3, np.uint8), "skim")
    plain = quantize_linear(weight, fisher, np.full(20, 3, np.uint8), "skim")
    np.testing.assert_allclose(quantized.errors.sum() / size**2, plain.errors.sum(), rtol=0.03)


def test_column_scale_of_ones_is_left_out():
    weight = np.array([[0.75, -0.6, 0.1, 0.5]], np.float32)
    assert quantize_uniform(weight).pack().column_scale.size == 0


@pytest.mark.parametrize("method", METHODS)
def test_does_not_depend_on_threads(method):
    rng = np.random.default_rng(6)
    weight, fisher = random_layer(rng, 90, 65)
    bits = rng.integers(1, 9, 90).astype(np.uint8)
    first, second = (quantize_linear(weight, fisher, bits, method, resources=Resources(t)).pack() for t in (1, 3))
    for name in first.TENSORS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value):
    weight, fisher = random_layer(np.random.default_rng(7), 4, 8)
    weight[2, 5] = value
    for quantize in (
        lambda: quantize_linear(weight, fisher, np.full(4, 3, np.uint8), "skim", name="model.layers.0.mlp.down_proj"),
        lambda: quantize_uniform(weight, name="model.layers.0.mlp.down_proj"),
    ):
        with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.down_proj: weight at row 2, column 5"):
            quantize()


def test_bad_sensitivities_are_refused():
    weight, fisher = random_layer(np.random.default_rng(8), 4, 8)
    bits = np.full(4, 3, np.uint8)
    with pytest.raises(UserError, match="sensitivity at row 0, column 1"):
        quantize_linear(weight, np.where(np.arange(8) == 1, np.float32(np.nan), fisher), bits, "skim")
    with pytest.raises(UserError, match="at least 0"):
        quantize_linear(weight, -fisher, bits, "squeezellm")
    with pytest.raises(ValueError, match="needs sensitivities"):
        quantize_linear(weight, None, bits, "skim")


@pytest.mark.parametrize("method", ["squeezellm", "gptq", "rtn", "weights", "skim+"])
@pytest.mark.parametrize("codebook", ["int8", "float16"])
def test_rows_do_not_depend_on_each_other(method, codebook):
    rng = np.random.default_rng(5)
    weight, sensitivity = random_layer(rng, 40, 96)
    bits = rng.integers(1, 9, 40).astype(np.uint8)
    parts = METHODS[method]
    if parts.objective is None:
        sensitivity = None
    correlation = np.corrcoef(rng.normal(size=(200, 96)), rowvar=False).astype(np.float32)
    given, resources = (weight, sensitivity, correlation), Resources(2)
    whole = quantize_with(
        weight, sensitivity, bits, parts, correlation=correlation, codebook=codebook, resources=resources
    ).pack()
    coupling = None
    if parts.correlated:
        by_column, lanes = sensitivity.sum(axis=0, dtype=np.float64), parts.levels.in_lanes(96)
        coupling = Coupling.of(damped(correlation.copy()), by_column, lanes=lanes)
    columns = Columns(unit_column_scale(weight), coupling)
    packed = []
    for rows in (slice(0, 16), slice(16, 17), slice(17, 40)):
        some = parts.quantize_rows(LinearArrays(*given), rows, bits[rows], columns, codebook, resources)
        packed.append(some.pack())
    joined = PackedLinear.concatenate(packed)
    for name in PackedLinear.TENSORS:
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
