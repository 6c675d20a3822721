"""Error feedback and refinement against what the definitions say."""

import itertools

import numpy as np
import pytest

from skim_export.packed import LevelKind
from skim_export.quantize import METHODS, quantize_linear
from skim_export.quantize.refinement import Coupling, damped, feed_back, refine_tables
from skim_export.quantize.solver import Layer, assign, feedback, kmeans, refine
from skim_export.work.resources import Resources

from .reference import (
    best_levels,
    descend_in_single_precision,
    feed_back_in_single_precision,
    feed_back_row,
    full_error,
    stretched_row,
)

SHAPES = [(1, 1), (3, 2), (9, 33), (5, 100), (64, 31)]


def random_problem(rows, columns, *, seed=0, threads=None):
    """Weights, sensitivities, column scale, and the correlation of a few random inputs."""
    rng = np.random.default_rng(seed + 1000 * rows + columns)
    inputs = rng.normal(size=(columns // 2 + 4, columns)) @ rng.normal(size=(columns, columns))
    hessian = inputs.T @ inputs
    spread = np.sqrt(np.diag(hessian))
    values = rng.standard_t(4, (rows, columns)).astype(np.float32)
    weights = np.exp(rng.normal(-3, 1.5, (rows, columns))).astype(np.float32)
    scale = rng.uniform(0.5, 2, columns).astype(np.float32)
    layer = Layer(values, weights, scale, threads and Resources(threads))
    return layer, damped((hessian / spread / spread[:, None]).astype(np.float32))


def coupled(layer, correlation):
    return Coupling.of(correlation, layer.weights.sum(axis=0, dtype=np.float64))


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_feedback_is_the_papers(rows, columns):
    layer, correlation = random_problem(rows, columns)
    bits = np.random.default_rng(1).integers(1, 5, rows).astype(np.uint8)
    levels = kmeans(layer, bits)[0]
    inverse = np.linalg.inv(correlation.astype(np.float64))
    factor = np.ascontiguousarray(np.linalg.cholesky(inverse).T, np.float32)
    codes = feedback(layer, factor, bits, levels)
    expected = np.stack([
        feed_back_row(layer.values[r], layer.weights[r], layer.column_scale, correlation, levels[r, : 1 << bits[r]])
        for r in range(rows)
    ])  # fmt: skip
    # A value halfway between two levels may fall to either side, and then the rest of its row differs.
    assert (codes == expected).all(axis=1).mean() > 0.9


@pytest.mark.parametrize(("rows", "columns"), [(3, 63), (2, 64), (10, 65), (2, 256), (3, 321), (2, 600), (131, 70)])
def test_every_bit_is_that_of_one_row_alone_and_one_column_after_the_other(rows, columns):
    """Columns around the panels (64) and those taken together (256), rows around the groups (128)."""
    layer, correlation = random_problem(rows, columns, threads=1)
    bits = np.random.default_rng(6).integers(1, 6, rows).astype(np.uint8)
    levels, _, start = kmeans(layer, bits)
    inverse = np.linalg.inv(correlation.astype(np.float64))
    factor = np.ascontiguousarray(np.linalg.cholesky(inverse).T, np.float32)
    fed = feedback(layer, factor, bits, levels)
    _, descended, _ = refine(layer, correlation, bits, levels, start, rounds=1, sweeps=3, fit=False)
    for r in range(rows):
        target, unit = stretched_row(layer.values[r], layer.weights[r], layer.column_scale)
        own = levels[r, : 1 << bits[r]]
        np.testing.assert_array_equal(fed[r], feed_back_in_single_precision(target, unit, factor, own))
        expected = descend_in_single_precision(target, unit, correlation, own, start[r], 3)
        np.testing.assert_array_equal(descended[r], expected)


def test_two_rounds_are_two_calls():
    """With sweeps until nothing changes; new levels set the codes in motion again."""
    layer, correlation = random_problem(40, 100)
    bits = np.full(40, 3, np.uint8)
    levels, _, codes = kmeans(layer, bits)
    expected = refine(layer, correlation, bits, levels, codes, rounds=2, sweeps=100)
    levels, codes, _ = refine(layer, correlation, bits, levels, codes, rounds=1, sweeps=100)
    again = refine(layer, correlation, bits, levels, codes, rounds=1, sweeps=100)
    assert (again[1] != codes).any()
    for got, wanted in zip(again, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_refinement_does_not_depend_on_threads_and_other_rows():
    rows, columns = 300, 70
    layer, correlation = random_problem(rows, columns, threads=1)
    bits = np.random.default_rng(7).integers(1, 6, rows).astype(np.uint8)
    levels, _, codes = kmeans(layer, bits)
    expected = refine(layer, correlation, bits, levels, codes, rounds=2, sweeps=3)
    for threads, step in ((3, rows), (2, 129), (1, 1)):
        for first in range(0, rows, step):
            some = slice(first, first + step)
            part = Layer(layer.values[some], layer.weights[some], layer.column_scale, Resources(threads))
            stride = 1 << int(bits[some].max())
            got = refine(
                part, correlation, bits[some], np.ascontiguousarray(levels[some, :stride]), codes[some], rounds=2,
                sweeps=3,
            )  # fmt: skip
            np.testing.assert_array_equal(got[0], expected[0][some, :stride])
            np.testing.assert_array_equal(got[1], expected[1][some])
            np.testing.assert_array_equal(got[2], expected[2][some])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_levels_are_optimal_for_the_codes(rows, columns, seed):
    layer, correlation = random_problem(rows, columns, seed=seed)
    bits = np.random.default_rng(2).integers(1, 6, rows).astype(np.uint8)
    start, _, codes = kmeans(layer, bits)
    levels, same, errors = refine(layer, correlation, bits, start, codes, rounds=1, sweeps=0)
    np.testing.assert_allclose(errors, full_error(layer, correlation, levels, same), rtol=1e-3, atol=1e-5)
    for r in range(rows):
        count = 1 << int(bits[r])
        assert (np.diff(levels[r, :count]) >= 0).all()
        best = best_levels(layer.values[r], layer.weights[r], layer.column_scale, correlation, codes[r], count)
        one = Layer(layer.values[r : r + 1], layer.weights[r : r + 1], layer.column_scale)
        least = full_error(one, correlation, np.nan_to_num(best)[None], codes[r : r + 1])[0]
        before = full_error(one, correlation, start[r : r + 1], codes[r : r + 1])[0]
        assert errors[r] <= least + 1e-3 * before + 1e-5


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_refinement_never_raises_the_error_and_ends_where_no_code_helps(rows, columns):
    layer, correlation = random_problem(rows, columns, seed=5)
    bits = np.random.default_rng(3).integers(1, 5, rows).astype(np.uint8)
    levels, _, codes = kmeans(layer, bits)
    errors = [full_error(layer, correlation, levels, codes)]
    for _ in range(4):
        levels, codes, reached = refine(layer, correlation, bits, levels, codes, rounds=1, sweeps=2)
        errors.append(reached)
    for before, after in itertools.pairwise(errors):
        assert (after <= before * (1 + 1e-3) + 1e-5).all()
    fixed, codes, _ = refine(layer, correlation, bits, levels, codes, rounds=1, sweeps=1000, fit=False)
    np.testing.assert_array_equal(fixed, levels)
    least = full_error(layer, correlation, levels, codes)
    for k in range(columns):
        for code in range(2):  # every row has these
            other = codes.copy()
            other[:, k] = code
            assert (full_error(layer, correlation, levels, other) >= least * (1 - 1e-3) - 1e-5).all()


def test_without_correlation_it_is_weighted_kmeans():
    layer, _ = random_problem(40, 90)
    bits = np.full(40, 3, np.uint8)
    identity = np.eye(90, dtype=np.float32)
    levels, _, codes = kmeans(layer, bits)
    np.testing.assert_array_equal(
        feed_back(layer, coupled(layer, identity), bits, levels), assign(layer, bits, levels)[0]
    )
    refined, same, errors = refine(layer, identity, bits, levels, codes, rounds=3, sweeps=3)
    np.testing.assert_allclose(refined, levels, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(errors, full_error(layer, identity, levels, codes), rtol=1e-4)
    assert (same != codes).mean() < 1e-3


def test_both_steps_pay():
    layer, correlation = random_problem(60, 200)
    bits = np.full(60, 3, np.uint8)
    levels, _, codes = kmeans(layer, bits)
    fed = feed_back(layer, coupled(layer, correlation), bits, levels)
    refined = refine_tables(layer, coupled(layer, correlation), bits, "float16")[2]
    errors = [full_error(layer, correlation, levels, c).sum() for c in (codes, fed)]
    assert errors[1] < 0.8 * errors[0]
    assert refined.sum() < 0.8 * errors[1]


@pytest.mark.parametrize("codebook", ["int8", "float16"])
def test_errors_are_those_of_what_is_stored(codebook):
    layer, correlation = random_problem(30, 70)
    bits = np.random.default_rng(4).integers(1, 7, 30).astype(np.uint8)
    codes, levels, errors = refine_tables(layer, coupled(layer, correlation), bits, codebook)
    values = levels.entries.astype(np.float64) * (levels.scale[:, None] if codebook == "int8" else 1.0)
    np.testing.assert_allclose(errors, full_error(layer, correlation, values, codes), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_beats_rounding_under_its_objective(bits):
    layer, correlation = random_problem(30, 80)
    sensitivity = np.ascontiguousarray(np.broadcast_to(layer.weights[:1], layer.values.shape))
    widths, errors = np.full(30, bits, np.uint8), []
    for name in ("gptq", "rtn"):
        quantized = quantize_linear(layer.values, sensitivity, widths, METHODS[name], correlation=correlation)
        assert (quantized.levels.kind == LevelKind.AFFINE).all()
        difference = np.sqrt(sensitivity) * (layer.values - quantized.pack().dequantize())
        errors.append(np.einsum("nj,jk,nk->", difference, correlation, difference))
    assert errors[0] < 0.8 * errors[1]


def test_rows_without_sensitivity_are_kept():
    layer, correlation = random_problem(10, 100)
    layer.weights[3] = 0
    quantized = quantize_linear(
        layer.values, layer.weights, np.full(10, 4, np.uint8), METHODS["skim+"], correlation=correlation
    )
    difference = quantized.pack().dequantize()[3] - layer.values[3]
    assert (difference**2).sum() < 0.1 * (layer.values[3] ** 2).sum()


def test_bad_shapes():
    layer, correlation = random_problem(4, 8)
    bits = np.full(4, 2, np.uint8)
    levels, _, codes = kmeans(layer, bits)
    with pytest.raises(ValueError, match="correlation must have shape"):
        refine(layer, correlation[:4], bits, levels, codes, rounds=1, sweeps=1)
    with pytest.raises(ValueError, match="levels must have shape"):
        feedback(layer, correlation, bits, levels[:, :2])
