import itertools

import numpy as np
import pytest

from skim_export.quantize.allocation import LinearCurves, allocate_bits, even_bits
from skim_runtime.errors import UserError

WIDTHS = np.array([1, 2, 3, 5], np.uint8)


def convex_curves(rng, rows, columns):
    """Errors that fall by less and less per bit."""
    saved = np.sort(rng.exponential(1, (rows, 3)), axis=1) * np.exp(rng.normal(0, 1, (rows, 1)))
    errors = np.concatenate([np.cumsum(saved, axis=1)[:, ::-1], np.zeros((rows, 1))], axis=1)
    return LinearCurves(errors, np.arange(1, 5, dtype=np.uint8), np.arange(1, 5) * columns)


def spent(layers, bits):
    return sum(int(layer.costs[np.searchsorted(layer.widths, b)].sum()) for layer, b in zip(layers, bits, strict=True))


def error(layers, bits):
    return sum(
        float(layer.errors[np.arange(len(b)), np.searchsorted(layer.widths, b)].sum())
        for layer, b in zip(layers, bits, strict=True)
    )


def brute_force(layer, budget):
    best = np.inf
    for choice in itertools.product(range(len(layer.widths)), repeat=len(layer.errors)):
        if layer.costs[list(choice)].sum() <= budget:
            best = min(best, layer.errors[np.arange(len(choice)), list(choice)].sum())
    return best


@pytest.mark.parametrize("seed", range(5))
def test_optimal_on_convex_curves(seed):
    layer = convex_curves(np.random.default_rng(seed), 5, 10)
    for budget in range(50, 201, 5):
        bits = allocate_bits([layer], budget)
        assert spent([layer], bits) == budget // 10 * 10
        np.testing.assert_allclose(error([layer], bits), brute_force(layer, budget), atol=1e-12)


def test_within_one_step_of_the_optimum_on_any_curves():
    rng = np.random.default_rng(0)
    for _ in range(20):
        errors = -np.sort(-rng.exponential(1, (5, 4)), axis=1)
        layer = LinearCurves(errors, WIDTHS, np.array([3, 7, 10, 20]))
        largest = (errors[:, 0] - errors[:, -1]).max()
        for budget in range(15, 101, 7):
            bits = allocate_bits([layer], budget)
            assert spent([layer], bits) <= budget
            assert error([layer], bits) <= brute_force(layer, budget) + largest


def test_error_never_rises_with_the_budget():
    rng = np.random.default_rng(1)
    layers = [
        LinearCurves(rng.exponential(1, (n, 4)), WIDTHS, WIDTHS.astype(np.int64) * columns + 8)
        for n, columns in ((20, 32), (7, 100), (1, 5))
    ]
    least = spent(layers, [np.ones(20, np.uint8), np.ones(7, np.uint8), np.ones(1, np.uint8)])
    errors = []
    for budget in range(least, least + 6000, 13):
        bits = allocate_bits(layers, budget)
        assert spent(layers, bits) <= budget
        errors.append(error(layers, bits))
    assert (np.diff(errors) <= 0).all()
    assert errors[-1] == sum(layer.errors.min(axis=1).sum() for layer in layers)


def test_bits_go_where_they_save_most():
    curves = np.array([[8.0, 2, 0.5, 0.1]])
    layers = [
        LinearCurves(np.repeat(curves, 10, axis=0), WIDTHS, WIDTHS.astype(np.int64) * 10),
        LinearCurves(np.repeat(1000 * curves, 10, axis=0), WIDTHS, WIDTHS.astype(np.int64) * 10),
    ]
    low, high = allocate_bits(layers, 20 * 2 * 10)
    assert (low == 1).all()
    assert (high == 3).all()


def test_widths_above_the_hull_are_left_out():
    layer = LinearCurves(np.array([[10.0, 9.9, 4, 0]]), WIDTHS, WIDTHS.astype(np.int64))
    assert [allocate_bits([layer], budget)[0].tolist() for budget in (1, 2, 3, 4, 5)] == [[1], [1], [3], [3], [5]]


def test_rows_without_gain_stay_narrow():
    layer = LinearCurves(np.zeros((3, 4)), WIDTHS, WIDTHS.astype(np.int64))
    assert allocate_bits([layer], 1000)[0].tolist() == [1, 1, 1]


def test_ties_go_to_the_first_rows():
    layer = LinearCurves(np.tile([4.0, 2, 1, 0.5], (4, 1)), WIDTHS, WIDTHS.astype(np.int64) * 10)
    assert allocate_bits([layer], 60)[0].tolist() == [2, 2, 1, 1]


def test_remainder_goes_to_cheaper_rows():
    wide = LinearCurves(np.array([[100.0, 0, 0, 0]]), WIDTHS, WIDTHS.astype(np.int64) * 100)
    narrow = LinearCurves(np.array([[0.5, 0.1, 0, 0]]), WIDTHS, WIDTHS.astype(np.int64))
    bits = allocate_bits([wide, narrow], 102)
    assert [b.tolist() for b in bits] == [[1], [2]]


def test_budget_below_the_smallest_is_refused():
    layer = LinearCurves(np.ones((3, 4)), WIDTHS, WIDTHS.astype(np.int64) * 10)
    with pytest.raises(UserError, match=r"29 bits.*smallest possible is 30"):
        allocate_bits([layer], 29)


@pytest.mark.parametrize("average", [1, 1.5, 2.99, 3, 3.2, 4.125, 8])
@pytest.mark.parametrize("rows", [1, 5, 576])
def test_even_bits(rows, average):
    bits = even_bits(rows, average)
    assert bits.sum() == np.floor(rows * average)
    assert set(bits.tolist()) <= {int(np.floor(average)), int(np.ceil(average))}
    means = np.cumsum(bits) / np.arange(1, rows + 1)
    assert (np.abs(means - average) <= 1 / np.arange(1, rows + 1)).all()


@pytest.mark.parametrize("average", [0.9, 8.1, float("nan")])
def test_even_bits_out_of_range(average):
    with pytest.raises(UserError, match="from 1 to 8"):
        even_bits(4, average)
