"""Rows that make up for each other's errors: the optimum by its definition, and what must not change."""

from dataclasses import replace

import numpy as np
import pytest

from skim_export.packed import PackedLinear
from skim_export.quantize import METHODS, quantize_linear
from skim_export.quantize import row_feedback as module
from skim_export.quantize.level_fits import FreeLevels
from skim_export.quantize.row_feedback import TURNS, fit_in_turns
from skim_export.quantize.solver import WeightRows
from skim_export.work.resources import ROW_GROUP, Resources

TOGETHER = METHODS["skim+"]
APART = replace(TOGETHER, rows_correlated=False)


def outputs_of(rng, rows, directions=3):
    """Correlations in blocks of rows whose gradients have a few directions in common, as they are stored."""
    gradients = rng.normal(size=(4 * rows, directions)) @ rng.normal(size=(directions, rows))
    gradients += 0.7 * rng.normal(size=gradients.shape)
    whole = np.corrcoef(gradients, rowvar=False).astype(np.float32).reshape(rows, rows)
    stored = np.zeros((rows, ROW_GROUP), np.float32)
    for start in range(0, rows, ROW_GROUP):
        block = slice(start, min(start + ROW_GROUP, rows))
        stored[block, : block.stop - start] = whole[block, block]
    return stored


def layer(rng, rows, columns):
    weight = (rng.standard_t(4, (rows, columns)) * 0.05).astype(np.float32)
    fisher = np.exp(rng.normal(-8, 1, (rows, columns))).astype(np.float32)
    correlation = np.corrcoef(rng.normal(size=(3 * columns, columns)), rowvar=False).astype(np.float32)
    return weight, fisher, correlation


def whole_error(outputs, correlation, fisher, difference):
    """`sum_rs R_rs z_r^T C z_s` over all blocks."""
    z = np.sqrt(fisher.astype(np.float64)) * difference
    total = 0.0
    for start in range(0, len(z), ROW_GROUP):
        block = z[start : start + ROW_GROUP]
        own = outputs[start : start + ROW_GROUP, : len(block)].astype(np.float64)
        total += np.einsum("rs,rj,jk,sk->", own, block, correlation, block, optimize=True)
    return total


@pytest.mark.parametrize("rows", [2, 8, 21, ROW_GROUP + 2, ROW_GROUP + 5])
def test_each_turn_has_the_targets_that_make_up_best(monkeypatch, rows):
    """With every earlier turn's errors given, the rows that are left are best where the gradient vanishes."""
    rng = np.random.default_rng(rows)
    weight, fisher, _ = layer(rng, rows, 32)
    outputs, bits = outputs_of(rng, rows), np.full(rows, 2, np.uint8)
    fisher[1] = 0  # as if all weights mattered alike
    root = np.where(fisher.any(axis=1, keepdims=True), np.sqrt(fisher.astype(np.float64)), 1)
    given, free = [], FreeLevels()

    def fit(some, own):
        given.append(some.values.copy())
        return free.fit(some, own, "int8", None)

    codes, levels, _ = fit_in_turns(WeightRows(weight, fisher), outputs, bits, fit)
    z = root * (PackedLinear.pack(codes, levels).dequantize() - weight)
    assert len(given) == min(TURNS, rows)
    for turn, targets in enumerate(given):
        first = 0
        for start in range(0, rows, ROW_GROUP):
            size = min(ROW_GROUP, rows - start)
            damped = (1 - module._DAMPING) * outputs[start : start + size, :size].astype(np.float64)
            np.fill_diagonal(damped, 1)
            numbers = np.arange(size)
            done, left = numbers[numbers % TURNS < turn], numbers[numbers % TURNS >= turn]
            best = -np.linalg.solve(damped[np.ix_(left, left)], damped[np.ix_(left, done)] @ z[start + done])
            own = start + left[left % TURNS == turn]
            expected = weight[own] + best[left % TURNS == turn] / root[own]
            most = np.abs(weight[own]).max(axis=1, keepdims=True)
            actual = targets[first : first + len(own)]
            np.testing.assert_allclose(actual, np.clip(expected, -most, most), atol=2e-5 * np.abs(weight).max())
            first += len(own)
        assert first == len(targets)


@pytest.mark.parametrize("bits", [2, 3])
def test_it_lowers_the_error_that_is_seen(bits):
    rng = np.random.default_rng(bits)
    weight, fisher, correlation = layer(rng, 300, 96)
    outputs, widths = outputs_of(rng, 300), np.full(300, bits, np.uint8)
    errors = []
    for method in (APART, TOGETHER):
        found = quantize_linear(
            weight, fisher, widths, method, correlation=correlation, output_correlation=outputs
        ).pack()
        errors.append(whole_error(outputs, correlation, fisher, found.dequantize() - weight))
    assert errors[1] < 0.75 * errors[0]


def quantized(weight, fisher, bits, correlation, outputs, resources=None, codebook="int8"):
    return quantize_linear(
        weight, fisher, bits, TOGETHER, correlation=correlation, output_correlation=outputs, resources=resources,
        codebook=codebook,
    ).pack()  # fmt: skip


@pytest.mark.parametrize("codebook", ["int8", "float16"])
def test_neither_threads_nor_runs_of_rows_change_a_byte(codebook):
    rng = np.random.default_rng(5)
    rows, columns = 2 * ROW_GROUP + 9, 96
    weight, fisher, correlation = layer(rng, rows, columns)
    outputs, bits = outputs_of(rng, rows), rng.integers(1, 9, rows).astype(np.uint8)
    bits[:TURNS] = 8  # a turn may have rows of even levels only
    common = (weight, fisher, bits, correlation, outputs)
    whole = quantized(*common, Resources(1), codebook)
    small = Resources(3, chunk_bytes=1)
    assert len(small.chunks(rows, columns)) == 3
    again = quantized(*common, small, codebook)
    for name in PackedLinear.TENSORS:
        np.testing.assert_array_equal(getattr(whole, name), getattr(again, name))


def test_rows_that_do_not_go_together_are_as_without():
    rng = np.random.default_rng(6)
    weight, fisher, correlation = layer(rng, 70, 64)
    bits = rng.integers(1, 7, 70).astype(np.uint8)
    alone = np.eye(70, ROW_GROUP, dtype=np.float32)
    apart = quantize_linear(weight, fisher, bits, APART, correlation=correlation).pack()
    unknown = quantized(weight, fisher, bits, correlation, None)
    together = quantized(weight, fisher, bits, correlation, alone)
    for name in PackedLinear.TENSORS:
        np.testing.assert_array_equal(getattr(together, name), getattr(apart, name))
        np.testing.assert_array_equal(getattr(unknown, name), getattr(apart, name))
