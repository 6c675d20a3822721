import os
import signal
import threading

import numpy as np
import pytest

from skim_export.quantize import solver
from skim_export.quantize.solver import Layer, assign, assign_affine, error_curves, kmeans, refit
from skim_export.work.resources import Resources

from .reference import brute_force_error, program_errors


def random_layer(rng, rows, columns, threads=None, *, scaled=False):
    values = rng.standard_t(4, (rows, columns)).astype(np.float32)
    weights = np.exp(rng.normal(0, 2, (rows, columns))).astype(np.float32)
    scale = rng.uniform(0.3, 3, columns).astype(np.float32) if scaled else None
    return Layer(values, weights, scale, threads and Resources(threads))


def full(rows, bits):
    return np.full(rows, bits, np.uint8)


def clustered_error(layer, centroids, codes):
    levels = np.take_along_axis(centroids.astype(np.float64), codes.astype(np.int64), axis=1)
    weights = 1 if layer.weights is None else layer.weights
    return (weights * (layer.values - levels * layer.column_scale) ** 2).sum(axis=1)


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("kind", ["plain", "duplicates", "zeros"])
def test_kmeans_is_optimal_against_all_partitions(columns, kind):
    rng = np.random.default_rng(columns)
    layer = random_layer(rng, 8, columns)
    if kind == "duplicates":
        layer = Layer(np.round(layer.values), layer.weights)
    if kind == "zeros":
        layer = Layer(layer.values, layer.weights * (rng.random((8, columns)) < 0.5))
    for bits in (1, 2):
        best = [brute_force_error(v, w, 1 << bits) for v, w in zip(layer.values, layer.weights, strict=True)]
        tolerance = 1e-6 * (layer.weights * layer.values**2).sum(axis=1) + 1e-30
        assert (np.abs(error_curves(layer, bits)[:, -1] - best) <= tolerance).all()
        centroids, _, codes = kmeans(layer, full(8, bits))
        assert (np.abs(clustered_error(layer, centroids, codes) - best) <= tolerance).all()


@pytest.mark.parametrize("columns", [31, 64, 300])
def test_error_curves_against_plain_dynamic_program(columns):
    layer = random_layer(np.random.default_rng(columns), 3, columns)
    curves = error_curves(layer, 6)
    for row in range(3):
        expected = program_errors(layer.values[row], layer.weights[row], 64)[[1, 3, 7, 15, 31, 63]]
        scale = (layer.weights[row] * layer.values[row] ** 2).sum()
        np.testing.assert_allclose(curves[row], expected, rtol=1e-6, atol=1e-11 * scale)


@pytest.mark.parametrize("columns", [1, 7, 576, 1536])
def test_kmeans_reaches_the_errors_of_the_curves(columns):
    layer = random_layer(np.random.default_rng(0), 12, columns, scaled=True)
    curves = error_curves(layer, 8)
    assert (np.diff(curves, axis=1) <= 0).all()
    bits = np.resize(np.arange(1, 9), 12).astype(np.uint8)
    centroids, mass, codes = kmeans(layer, bits)
    assert centroids.shape == mass.shape == (12, 256)
    assert (codes < 1 << bits.astype(np.int64)[:, None]).all()
    power = (layer.weights * layer.values**2).sum(axis=1)
    expected = curves[np.arange(12), bits - 1]
    np.testing.assert_allclose(clustered_error(layer, centroids, codes), expected, rtol=1e-5, atol=1e-10 * power.max())
    for row in range(12):
        used = 1 << int(bits[row])
        assert (np.diff(centroids[row, :used]) >= 0).all()
        assert not centroids[row, used:].any()
    np.testing.assert_allclose(mass.sum(axis=1), (layer.weights * layer.column_scale**2).sum(axis=1), rtol=1e-5)


def test_more_levels_than_distinct_values():
    values = np.array([[3, 1, 3, 1, 1, 2], [5, 5, 5, 5, 5, 5]], np.float32)
    layer = Layer(values, np.ones_like(values))
    centroids, _, codes = kmeans(layer, full(2, 3))
    np.testing.assert_array_equal(np.take_along_axis(centroids, codes.astype(np.int64), axis=1), values)
    np.testing.assert_allclose(error_curves(layer, 3)[:, 1:], 0, atol=1e-12)


def test_rows_without_weight_cluster_as_if_all_mattered_alike():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(2, 100)).astype(np.float32)
    weights = np.zeros_like(values)
    zero = kmeans(Layer(values, weights), full(2, 3))
    plain = kmeans(Layer(values), full(2, 3))
    for got, expected in zip(zero, plain, strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(error_curves(Layer(values, weights), 3), 0)


def test_weights_of_very_different_size():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(4, 400)).astype(np.float32)
    weights = np.exp(rng.uniform(-60, 0, (4, 400))).astype(np.float32)
    layer = Layer(values, weights)
    centroids, _, codes = kmeans(layer, full(4, 3))
    assert np.isfinite(centroids).all()
    floored = np.maximum(weights, weights.mean(axis=1, keepdims=True) * 2.0**-30)
    expected = [program_errors(v, w, 8)[-1] for v, w in zip(values, floored, strict=True)]
    np.testing.assert_allclose(clustered_error(layer, centroids, codes), expected, rtol=1e-6)


def test_values_far_from_zero():
    rng = np.random.default_rng(3)
    values = (1000 + rng.normal(size=(2, 200))).astype(np.float32)
    layer = Layer(values)
    expected = [program_errors(v - np.float32(1000), np.ones(200), 16)[-1] for v in values]
    np.testing.assert_allclose(error_curves(layer, 4)[:, -1], expected, rtol=1e-6)


def test_results_do_not_depend_on_threads():
    rng = np.random.default_rng(4)
    rows = 150
    bits = rng.integers(1, 6, rows).astype(np.uint8)
    results = []
    for threads in (1, 2, 5):
        layer = random_layer(np.random.default_rng(5), rows, 70, threads, scaled=True)
        curves = error_curves(layer, 5)
        centroids, mass, codes = kmeans(layer, bits)
        results.append(
            [
                curves,
                centroids,
                mass,
                codes,
                *assign(layer, bits, centroids),
                *refit(layer, bits, codes, centroids),
                assign_affine(layer, bits, np.full(rows, 0.1, np.float32), np.zeros(rows, np.float32))[0],
            ]
        )
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("columns", [1, 31, 200])
def test_assign_finds_the_nearest_level(columns):
    rng = np.random.default_rng(6)
    layer = random_layer(rng, 9, columns, scaled=True)
    bits = np.resize(np.arange(1, 6), 9).astype(np.uint8)
    levels = np.sort(rng.normal(size=(9, 32)), axis=1).astype(np.float32)
    codes, errors = assign(layer, bits, levels)
    for row in range(9):
        stored = levels[row, : 1 << int(bits[row])][:, None] * layer.column_scale  # [levels, K]
        distance = np.abs(layer.values[row].astype(np.float64) - stored)
        chosen = distance[codes[row], np.arange(columns)]
        np.testing.assert_allclose(chosen, distance.min(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(errors[row], (layer.weights[row] * chosen**2).sum(), rtol=1e-9)


def test_assign_affine():
    rng = np.random.default_rng(7)
    layer = random_layer(rng, 8, 200, scaled=True)
    bits = np.arange(1, 9).astype(np.uint8)
    scale = rng.uniform(0.01, 0.5, 8).astype(np.float32)
    offset = rng.normal(0, 0.1, 8).astype(np.float32)
    codes, errors, best = assign_affine(layer, bits, scale, offset)

    def error(scale, offset, codes):
        steps = codes - np.ldexp(0.5, bits)[:, None]
        stored = (offset[:, None] + scale[:, None] * steps) * layer.column_scale
        return (layer.weights * (layer.values - stored) ** 2).sum(axis=1)

    np.testing.assert_allclose(errors, error(scale, offset, codes), rtol=1e-5)
    for move in (-1, 1):  # no other code is nearer
        moved = np.clip(codes.astype(np.int64) + move, 0, (1 << bits.astype(np.int64)[:, None]) - 1)
        steps, moved_steps = (c - np.ldexp(0.5, bits)[:, None] for c in (codes, moved))
        scaled = layer.values / layer.column_scale
        distance, moved_distance = (np.abs(scaled - offset[:, None] - scale[:, None] * s) for s in (steps, moved_steps))
        assert (distance <= moved_distance + 1e-5).all()
    least = error(*best, codes)
    for factor in (0.99, 1.01):
        assert (error(best[0] * factor, best[1], codes) > least).all()
        assert (error(best[0], best[1] + (factor - 1) * best[0], codes) > least).all()


def test_refit_steps_are_optimal():
    rng = np.random.default_rng(8)
    layer = random_layer(rng, 130, 40, scaled=True)
    bits = np.resize([2, 3], 130).astype(np.uint8)
    codes = (rng.integers(0, 256, (130, 40)) % (1 << bits.astype(np.int64)[:, None])).astype(np.uint8)
    start = rng.normal(size=(130, 8)).astype(np.float32)
    centroids, errors, numerator, denominator = refit(layer, bits, codes, start)
    np.testing.assert_allclose(errors, clustered_error(layer, centroids, codes), rtol=1e-6)
    for factor in (0.99, 1.01):
        assert (clustered_error(layer, centroids * np.float32(factor), codes) > errors).all()
    scale = (numerator / denominator).astype(np.float32)

    def column_errors(scale):
        levels = np.take_along_axis(centroids.astype(np.float64), codes.astype(np.int64), axis=1)
        return (layer.weights * (layer.values - levels * scale) ** 2).sum(axis=0)

    least = column_errors(scale)
    assert least.sum() < errors.sum()
    for factor in (0.99, 1.01):
        assert (column_errors(scale * np.float32(factor)) > least).all()


def test_refit_keeps_centroids_without_weight():
    layer = Layer(np.ones((1, 4), np.float32), np.array([[1, 1, 0, 0]], np.float32))
    start = np.array([[0, 7]], np.float32)
    centroids, *_ = refit(layer, full(1, 1), np.array([[0, 0, 1, 1]], np.uint8), start)
    np.testing.assert_array_equal(centroids, [[1, 7]])
    np.testing.assert_array_equal(start, [[0, 7]])


def test_ctrl_c_is_seen_between_chunks(monkeypatch):
    layer = random_layer(np.random.default_rng(9), 64, 32)
    monkeypatch.setattr(solver, "_CHUNK_SECONDS", 0.0)  # one row a call
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    assert threading.current_thread() is threading.main_thread()
    monkeypatch.setattr(solver, "_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        error_curves(layer, 2)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("values", "weights", "scale", "named"),
    [
        (np.zeros((2, 3)), None, None, "values"),
        (np.zeros(3, np.float32), None, None, "values"),
        (np.zeros((0, 3), np.float32), None, None, "values"),
        (np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32), None, "weights"),
        (np.zeros((2, 3), np.float32), None, np.ones(2, np.float32), "column_scale"),
    ],
)
def test_wrong_arrays_are_refused(values, weights, scale, named):
    with pytest.raises(ValueError, match=named):
        Layer(values, weights, scale)


def test_wrong_widths_and_tables_are_refused():
    layer = random_layer(np.random.default_rng(0), 2, 8)
    with pytest.raises(ValueError, match="max_bits"):
        error_curves(layer, 9)
    for bits in (np.array([0, 1], np.uint8), np.array([9, 1], np.uint8), np.array([1], np.uint8), np.array([1, 1])):
        with pytest.raises(ValueError, match="bits"):
            kmeans(layer, bits)
    with pytest.raises(ValueError, match="levels"):
        assign(layer, full(2, 2), np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="codes"):
        refit(layer, full(2, 1), np.zeros((2, 7), np.uint8), np.zeros((2, 2), np.float32))


@pytest.mark.parametrize("columns", [5, 64, 300, 1000])
def test_fewer_points_cost_little(columns):
    layer = Layer(np.random.default_rng(columns).normal(size=(6, columns)).astype(np.float32))
    errors = []
    for points in (None, 64):
        centroids, _, codes = kmeans(layer, full(6, 3), points)
        errors.append(((layer.values - np.take_along_axis(centroids, codes.astype(np.int64), axis=1)) ** 2).sum(axis=1))
    assert (errors[1] >= errors[0] * (1 - 1e-5) - 1e-9).all()
    assert (errors[1] <= 1.1 * errors[0] + 1e-9).all()
    if columns <= 64:
        np.testing.assert_array_equal(*errors)
