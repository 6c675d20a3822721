"""The solver in torch against the native one. There is no GPU here: its tensors are those of the CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from skim_export.quantize import METHODS, quantize_linear, refinement, torch_refine, torch_solver
from skim_export.quantize.refinement import Coupling, feed_back, refine_tables
from skim_export.quantize.solver import WeightRows, error_curves, feedback, kmeans, refine
from skim_export.work.resources import Resources

from .reference import full_error
from .test_refinement import random_problem
from .test_solver import clustered_error, full, random_layer

CPU = torch.device("cpu")
SHAPES = [(1, 1), (3, 2), (9, 33), (64, 31), (7, 127), (5, 128), (6, 129), (12, 300)]  # K around a block of 128


def in_torch(layer, device=CPU):
    return WeightRows(layer.values, layer.weights, layer.column_scale, replace(layer.resources, device=device))


def mixed_bits(rows, most=8):
    return np.resize(np.arange(1, most + 1), rows).astype(np.uint8)


def power(layer):
    return (layer.weights.astype(np.float64) * layer.values**2).sum(axis=1)


@pytest.mark.parametrize("columns", [1, 2, 31, 100, 512, pytest.param(1536, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["plain", "duplicates", "zeros", "far"])
def test_clusters_are_optimal_where_they_may_begin_anywhere(columns, kind):
    layer = random_layer(np.random.default_rng(columns), 9, columns, scaled=True)
    if kind == "duplicates":
        layer = WeightRows(np.round(layer.values), layer.weights)
    if kind == "zeros":
        layer.weights[np.random.default_rng(0).random((9, columns)) < 0.5] = 0
    if kind == "far":
        layer = WeightRows(layer.values + np.float32(1000), layer.weights)
    bits, tolerance = mixed_bits(9), 1e-9 * power(layer) + 1e-30
    curves, expected = error_curves(in_torch(layer), 6), error_curves(layer, 6)
    assert curves.dtype == np.float64
    assert (np.abs(curves - expected) <= 1e-6 * expected + tolerance[:, None]).all()
    centroids, mass, codes = kmeans(in_torch(layer), bits)
    assert [x.dtype for x in (centroids, mass, codes)] == [np.float32, np.float32, np.uint8]
    best = clustered_error(layer, *kmeans(layer, bits)[::2])
    assert (np.abs(clustered_error(layer, centroids, codes) - best) <= 1e-6 * best + tolerance).all()
    for row in range(9):
        used = 1 << int(bits[row])
        assert (np.diff(centroids[row, :used]) >= 0).all()
        assert not centroids[row, used:].any()
        assert codes[row].max() < used
    np.testing.assert_allclose(mass.sum(axis=1), kmeans(layer, bits)[1].sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("columns", [2048, 4096, 5000])
@pytest.mark.parametrize("tails", [3, 100])
def test_clusters_that_begin_at_some_places(columns, tails):
    rng = np.random.default_rng(columns)
    values = rng.standard_t(tails, (6, columns)).astype(np.float32)
    layer = WeightRows(values, np.exp(rng.normal(0, 1.5, values.shape)).astype(np.float32))
    expected, curves = error_curves(layer, 6), error_curves(in_torch(layer), 6)
    assert (curves >= expected * (1 - 1e-9)).all()
    assert (curves <= expected * 1.01).all()
    bits = mixed_bits(6, 6)
    centroids, _, codes = kmeans(in_torch(layer), bits)
    errors = clustered_error(layer, centroids, codes)
    np.testing.assert_allclose(errors, curves[np.arange(6), bits - 1], rtol=1e-4)


def test_fewer_places_cost_little_at_few_bits():
    layer = random_layer(np.random.default_rng(0), 10, 600)
    errors = [clustered_error(layer, *kmeans(x, full(10, 3), 100)[::2]) for x in (layer, in_torch(layer))]
    best = error_curves(layer, 3)[:, -1]
    assert (errors[1] <= 1.02 * best).all()
    assert errors[1].sum() <= errors[0].sum()  # whose places are spread evenly


def test_places_among_equal_values():
    rng = np.random.default_rng(1)
    layer = WeightRows(rng.integers(-3, 4, (3, 3000)).astype(np.float32))
    assert np.isfinite(error_curves(in_torch(layer), 2)).all()
    np.testing.assert_allclose(error_curves(in_torch(layer), 2), error_curves(layer, 2), rtol=1e-2)
    np.testing.assert_allclose(error_curves(in_torch(layer), 3)[:, -1], 0, atol=1e-6)
    same = WeightRows(np.full((2, 3000), 7, np.float32))
    centroids, _, codes = kmeans(in_torch(same), full(2, 2))
    np.testing.assert_array_equal(np.take_along_axis(centroids, codes.astype(np.int64), axis=1), same.values)


def test_rows_without_weight_cluster_as_if_all_mattered_alike():
    values = np.random.default_rng(1).normal(size=(2, 100)).astype(np.float32)
    zero = in_torch(WeightRows(values, np.zeros_like(values)))
    for got, expected in zip(kmeans(zero, full(2, 3)), kmeans(in_torch(WeightRows(values)), full(2, 3)), strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(error_curves(zero, 3), 0)


def test_clusters_do_not_depend_on_the_rows_beside_them(monkeypatch):
    layer, bits = in_torch(random_layer(np.random.default_rng(2), 20, 90)), mixed_bits(20, 4)
    together = [error_curves(layer, 4), *kmeans(layer, bits)]
    monkeypatch.setattr(torch_solver, "_KMEANS_BYTES", 1)  # one row after the other
    for got, expected in zip([error_curves(layer, 4), *kmeans(layer, bits)], together, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_feedback(rows, columns):
    layer, correlation = random_problem(rows, columns)
    bits = mixed_bits(rows)
    levels = kmeans(layer, bits)[0]
    factor = refinement._inverse_factor(correlation.copy())
    expected, codes = (feedback(x, factor, bits, levels) for x in (layer, in_torch(layer)))
    assert codes.dtype == np.uint8
    assert (codes == expected).mean() > 0.99  # a value halfway between two levels may fall to either side
    errors = [full_error(layer, correlation, levels, c).sum() for c in (codes, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3, abs=1e-9 * power(layer).sum())


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("fit", [True, False])
def test_refinement(rows, columns, fit):
    layer, correlation = random_problem(rows, columns, seed=5)
    bits = mixed_bits(rows, 6)
    start, _, codes = kmeans(layer, bits)
    start[np.arange(start.shape[1]) >= (1 << bits)[:, None]] = 77  # not levels: to be left alone
    options = {"rounds": 3, "sweeps": 3, "fit": fit}
    levels, refined, errors = refine(in_torch(layer), correlation, bits, start, codes, **options)
    assert [x.dtype for x in (levels, refined, errors)] == [np.float32, np.uint8, np.float64]
    tolerance = 1e-6 * power(layer)
    assert (np.abs(errors - full_error(layer, correlation, levels, refined)) <= 1e-3 * errors + tolerance).all()
    assert (errors <= full_error(layer, correlation, start, codes) * (1 + 1e-3) + tolerance).all()
    native = refine(layer, correlation, bits, start, codes, **options)[2]
    assert errors.sum() == pytest.approx(native.sum(), rel=1e-2, abs=tolerance.sum())
    used = np.arange(start.shape[1]) < (1 << bits)[:, None]
    assert (levels[~used] == 77).all()
    for row in range(rows):
        assert (np.diff(levels[row, used[row]]) >= 0).all()
        assert refined[row].max() < 1 << bits[row]
    if not fit:
        np.testing.assert_array_equal(levels, start)


def test_without_sweeps_only_levels_change(monkeypatch):
    layer, correlation = random_problem(20, 150)
    bits = mixed_bits(20, 5)
    start, _, codes = kmeans(layer, bits)
    expected = refine(layer, correlation, bits, start, codes, rounds=1, sweeps=0)
    for fit_bytes in (1 << 28, 1):  # all rows of a width at once; each for itself
        monkeypatch.setattr(torch_refine, "_FIT_BYTES", fit_bytes)
        found = refine(in_torch(layer), correlation, bits, start, codes, rounds=1, sweeps=0)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-3, atol=1e-3 * np.abs(expected[0]).max())
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_allclose(found[2], expected[2], rtol=1e-3, atol=1e-6 * power(layer).max())


def test_rows_whose_levels_have_no_solution_keep_them():
    layer, _ = random_problem(4, 20)
    bits = mixed_bits(4, 2)
    start, _, codes = kmeans(layer, bits)
    for x in (layer, in_torch(layer)):
        levels = refine(x, -np.eye(20, dtype=np.float32), bits, start, codes, rounds=1, sweeps=0)[0]
        np.testing.assert_array_equal(levels, start)


def test_rows_and_layers_without_weights():
    layer, correlation = random_problem(6, 80)
    bits = full(6, 3)
    layer.weights[2] = 0
    for one in (layer, WeightRows(layer.values, None, layer.column_scale)):
        errors = [refine_tables(x, Coupling.of(correlation, None), bits, "int8")[2] for x in (one, in_torch(one))]
        np.testing.assert_allclose(errors[1].sum(), errors[0].sum(), rtol=1e-2)
        np.testing.assert_allclose(errors[1][2], errors[0][2], rtol=0.05)


@pytest.mark.parametrize("columns", [1, 33, 300])
def test_inverse_factor(columns):
    _, correlation = random_problem(2, columns)
    expected = np.linalg.cholesky(np.linalg.inv(correlation.astype(np.float64))).T
    factor = Coupling.of(correlation, None, CPU).factor
    assert factor.flags.c_contiguous
    assert factor.dtype == np.float32
    assert np.linalg.norm(factor - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("method", METHODS)
def test_methods_lose_as_much(method):
    layer, correlation = random_problem(30, 120)
    bits = mixed_bits(30)
    sensitivity = None if METHODS[method].objective is None else layer.weights
    lost = [
        quantize_linear(
            layer.values, sensitivity, bits, METHODS[method], correlation=correlation, resources=resources
        ).errors.sum()
        for resources in (Resources(), Resources(device=CPU))
    ]
    assert lost[1] == pytest.approx(lost[0], rel=0.01)


def test_all_of_it_is_on_the_device(second_device):
    layer, correlation = random_problem(10, 72)
    bits, found = mixed_bits(10, 5), []
    for device in (CPU, second_device):
        one = in_torch(layer, device)
        centroids, mass, codes = kmeans(one, bits, 36)
        coupling = Coupling.of(correlation, None, device)
        codes = feed_back(one, coupling, bits, centroids)
        refined = refine(one, correlation, bits, centroids, codes, rounds=2, sweeps=3)
        found.append([error_curves(one, 4), centroids, mass, coupling.factor, codes, *refined])
    for got, expected in zip(found[1], found[0], strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_second_device_refuses_what_a_gpu_would(second_device):
    there = torch.ones(3, device=second_device)
    assert there.device == second_device
    assert (there + 1).cpu().tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match="two devices"):
        there + torch.ones(3)
    with pytest.raises(RuntimeError, match="two devices"):
        torch.ones(2, 3) @ there
