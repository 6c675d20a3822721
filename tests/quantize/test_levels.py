import numpy as np
import pytest

from skim_export.packed import LevelKind
from skim_export.quantize.levels import fit_affine, fit_tables, range_affine
from skim_export.quantize.solver import WeightRows, error_curves, kmeans


def random_layer(rng, rows, columns):
    values = rng.standard_t(5, (rows, columns)).astype(np.float32)
    weights = np.exp(rng.normal(0, 1, (rows, columns))).astype(np.float32)
    return WeightRows(values, weights, rng.uniform(0.5, 2, columns).astype(np.float16).astype(np.float32))


def stored_errors(layer, codes, levels):
    """Weighted error of what `levels` says, row by row."""
    stored = np.stack([levels.table(row)[codes[row]] for row in range(layer.count)]) * layer.column_scale
    weights = 1 if layer.weights is None else layer.weights
    return (weights * (layer.values.astype(np.float64) - stored) ** 2).sum(axis=1)


def random_bits(rng, rows):
    return np.resize(np.arange(1, 9), rows).astype(np.uint8)


@pytest.mark.parametrize("codebook", ["int8", "float16"])
def test_tables_come_close_to_the_optimum(codebook):
    rng = np.random.default_rng(0)
    layer = random_layer(rng, 64, 200)
    bits = random_bits(rng, 64)
    codes, levels, errors = fit_tables(layer, bits, codebook)
    assert levels.entries.dtype == codebook
    assert (levels.kind == LevelKind.TABLE).all()
    np.testing.assert_allclose(errors, stored_errors(layer, codes, levels), rtol=1e-9)
    least = np.take_along_axis(error_curves(layer, 8), bits[:, None].astype(np.int64) - 1, axis=1)[:, 0]
    assert (errors >= least * (1 - 1e-6)).all()
    narrow = bits <= 4  # the centroids of wider rows lie closer than int8 can tell apart
    assert errors[narrow].sum() < (1.01 if codebook == "int8" else 1.0001) * least[narrow].sum()


def test_int8_scale_search_pays():
    rng = np.random.default_rng(1)
    layer = random_layer(rng, 50, 300)
    bits = np.full(50, 3, np.uint8)
    least = error_curves(layer, 3)[:, -1]
    extra = fit_tables(layer, bits, "int8")[2].sum() - least.sum()
    # Entries rounded with the one scale that puts the largest at 127 are off by step^2 / 12 on average.
    largest = np.abs(kmeans(layer, bits)[0]).max(axis=1) / 127
    mass = (layer.weights * layer.column_scale**2).sum(axis=1)
    assert extra < 0.5 * (mass * largest**2 / 12).sum()


@pytest.mark.parametrize("fit", [fit_affine, range_affine])
def test_affine_levels(fit):
    rng = np.random.default_rng(2)
    layer = random_layer(rng, 40, 100)
    bits = random_bits(rng, 40)
    codes, levels, errors = fit(layer, bits)
    assert (levels.kind == LevelKind.AFFINE).all()
    np.testing.assert_allclose(errors, stored_errors(layer, codes, levels), rtol=1e-6)
    assert (codes < 1 << bits.astype(np.int64)[:, None]).all()


def test_range_affine_spans_the_values():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(8, 500)).astype(np.float32)
    bits = random_bits(rng, 8)
    codes, levels, _ = range_affine(WeightRows(values), bits)
    step = np.ptp(values, axis=1) / (2.0**bits - 1)
    for row in range(8):
        table = levels.table(row)
        assert codes[row, values[row].argmin()] == 0
        assert codes[row, values[row].argmax()] == len(table) - 1
        assert np.abs(table[codes[row]] - values[row]).max() <= 0.55 * step[row] + 2e-3


def test_fit_affine_is_at_least_as_good_as_the_range():
    layer = random_layer(np.random.default_rng(4), 60, 150)
    for b in (2, 4, 8):
        bits = np.full(60, b, np.uint8)
        fitted, plain = fit_affine(layer, bits)[2], range_affine(layer, bits)[2]
        assert (fitted <= plain).all()
        assert fitted.sum() < (0.8 if b < 8 else 0.99) * plain.sum()


@pytest.mark.parametrize("size", [2.0**-20, 1e-4, 1.0, 1e4])
def test_rows_of_very_different_size(size):
    """Scales in the subnormal range of float16 lose precision; entries make up for it."""
    rng = np.random.default_rng(5)
    values = (rng.normal(size=(10, 100)) * size).astype(np.float32)
    layer = WeightRows(values)
    bits = np.full(10, 3, np.uint8)
    _, _, errors = fit_tables(layer, bits, "int8")
    least = error_curves(layer, 3)[:, -1]
    assert (errors < (1.02 if size > 1e-5 else 1.5) * least).all()


def test_constant_and_zero_rows():
    values = np.zeros((3, 20), np.float32)
    values[1] = 0.25
    values[2] = -0.75
    layer = WeightRows(values)
    for bits in (1, 3, 8):
        widths = np.full(3, bits, np.uint8)
        for fit in (lambda layer, bits: fit_tables(layer, bits, "int8"), fit_affine, range_affine):
            codes, levels, errors = fit(layer, widths)
            np.testing.assert_allclose(errors, 0, atol=20 * 0.75**2 * 2.0**-22)
            np.testing.assert_allclose(errors, stored_errors(layer, codes, levels), atol=1e-12)
