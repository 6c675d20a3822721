import numpy as np
import pytest

from skim_export.quantize.scaling import fit_column_scale, unit_column_scale
from skim_export.quantize.solver import Layer, error_curves
from skim_export.work.resources import Resources


def least_error(weight, fisher, scale, bits):
    return float(error_curves(Layer(weight, fisher, scale.astype(np.float32)), bits)[:, -1].sum())


def bits(rows, width=3):
    return np.full(rows, width, np.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_never_worse_than_no_scaling(seed):
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(4, (40, 50)).astype(np.float32)
    fisher = np.exp(rng.normal(0, 2, (40, 50))).astype(np.float32)
    scale = fit_column_scale(weight, fisher, bits(40))
    assert least_error(weight, fisher, scale, 3) <= least_error(weight, fisher, unit_column_scale(weight), 3)


def test_columns_of_different_spread():
    rng = np.random.default_rng(0)
    spread = np.exp(rng.uniform(-1.5, 1.5, 96))
    weight = (rng.normal(size=(64, 96)) * spread).astype(np.float32)
    fisher = (1 / spread**2 * np.ones((64, 1))).astype(np.float32)  # all columns matter alike
    scale = fit_column_scale(weight, fisher, bits(64))
    assert least_error(weight, fisher, scale, 3) < 0.5 * least_error(weight, fisher, unit_column_scale(weight), 3)
    assert np.corrcoef(np.log(scale.astype(np.float64)), np.log(spread))[0, 1] > 0.9


def test_bounded_with_dead_columns_and_outliers():
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(30, 40)).astype(np.float32)
    fisher = np.exp(rng.normal(0, 2, (30, 40))).astype(np.float32)
    weight[:, 3] = 0
    weight[:, 4] *= 1e4
    fisher[:, 5] = 0
    fisher[7] = 0
    scale = fit_column_scale(weight, fisher, bits(30))
    unit = unit_column_scale(weight).astype(np.float64)
    ratio = scale / unit
    assert scale.dtype == np.float16
    assert (ratio >= 1 / 8).all()
    assert (ratio <= 8).all()


@pytest.mark.parametrize("fisher", [0.0, 1.0])
def test_layer_of_zeros(fisher):
    weight = np.zeros((4, 6), np.float32)
    scale = fit_column_scale(weight, np.full_like(weight, fisher), bits(4))
    assert (scale > 0).all()
    assert np.isfinite(scale).all()


@pytest.mark.parametrize(
    ("size", "expected"), [(1.0, 1.0), (0.05, 1.0), (1e-2, 2.0**-6), (1e-9, 2.0**-11), (1e9, 2.0**12)]
)
def test_unit_scale_is_a_power_of_two_for_tiny_and_huge_weights(size, expected):
    weight = np.array([[0, size], [-size / 3, 0]], np.float32)
    np.testing.assert_array_equal(unit_column_scale(weight), [expected, expected])


def test_does_not_depend_on_threads():
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(300, 33)).astype(np.float32)
    fisher = np.exp(rng.normal(0, 1, (300, 33))).astype(np.float32)
    scales = [fit_column_scale(weight, fisher, bits(300), Resources(threads)) for threads in (1, 2, 3)]
    np.testing.assert_array_equal(scales[0], scales[1])
    np.testing.assert_array_equal(scales[0], scales[2])
