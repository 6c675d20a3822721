"""Block formats against definitions written out weight by weight, and GPTQ and SmoothQuant around them."""

import numpy as np
import pytest
from block_formats import BLOCK_METHODS, mxfp4, mxint4, quantize_blocks, rtn_groups

SHAPES = [(1, 1), (3, 64), (4, 96), (2, 130)]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
INT4 = np.arange(8) / 4


def random_weight(rows, columns, seed=0):
    return (np.random.default_rng(seed).standard_t(4, (rows, columns)) * 0.05).astype(np.float32)


def rtn_of_group(group, bits):
    low, high, largest = min(group.min(), 0), max(group.max(), 0), 2**bits - 1
    scale = float(np.float16((high - low) / np.float32(largest)))
    if scale == 0:
        return np.zeros(len(group))
    zero = round(-low / scale)
    return np.array([(min(max(round(w / scale) + zero, 0), largest) - zero) * scale for w in group.tolist()])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_rtn_groups(shape, bits):
    weight = random_weight(*shape)
    weight[0] = np.abs(weight[0])  # a group on one side of zero
    got = quantize_blocks(weight, rtn_groups(bits))
    for row, got_row in zip(weight, got.weight, strict=True):
        for start in range(0, shape[1], 64):
            group = slice(start, start + 64)
            np.testing.assert_allclose(got_row[group], rtn_of_group(row[group], bits), rtol=1e-6)
    groups = shape[0] * -(-shape[1] // 64)
    assert (got.code_bits, got.bits) == (bits, shape[0] * shape[1] * bits + groups * (16 + bits))


def test_rtn_groups_keep_zeros():
    assert not quantize_blocks(np.zeros((2, 64), np.float32), rtn_groups(3)).weight.any()


def mx_of_block(block, magnitudes, exponent):
    largest = np.abs(block).max()
    scale = 2.0 ** (np.floor(np.log2(largest)) - exponent) if largest else 1.0
    values = []
    for w in block.tolist():
        distance = np.abs(abs(w) / scale - magnitudes)
        nearest = np.flatnonzero(distance == distance.min())
        index = nearest[nearest % 2 == 0][0] if len(nearest) == 2 else nearest[0]  # ties to an even mantissa
        values.append(np.copysign(magnitudes[index] * scale, w))
    return np.array(values)


@pytest.mark.parametrize(("kind", "magnitudes", "exponent"), [(mxfp4, E2M1, 2), (mxint4, INT4, 0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_microscaled(shape, kind, magnitudes, exponent):
    weight = random_weight(*shape)
    got = quantize_blocks(weight, kind)
    for row, got_row in zip(weight, got.weight, strict=True):
        for start in range(0, shape[1], 32):
            block = slice(start, start + 32)
            np.testing.assert_array_equal(got_row[block], mx_of_block(row[block], magnitudes, exponent))
    assert got.bits == shape[0] * (4 * shape[1] + 8 * -(-shape[1] // 32))


def test_mxfp4_ties_go_to_even_and_large_values_saturate():
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, 7.9, -0.75, -5]
    weight = np.zeros((1, 32), np.float32)
    weight[0, : len(ties)] = ties
    got = quantize_blocks(weight, mxfp4).weight
    expected = [0, 1, 1, 2, 2, 4, 4, 6, 6, -1, -4]
    np.testing.assert_array_equal(got[0, : len(ties)], expected)
    np.testing.assert_array_equal(got[0], mx_of_block(weight[0], E2M1, 2))


def random_hessian(columns, seed=1):
    x = np.random.default_rng(seed).standard_normal((columns, 2 * columns)) @ np.diag(np.linspace(0.2, 2, 2 * columns))
    return x @ x.T / columns


def test_feedback_follows_its_definition():
    weight, hessian = random_weight(3, 70), random_hessian(70)
    left, expected = weight.astype(np.float64), np.zeros((3, 70))
    damped = hessian + 0.01 * np.mean(np.diag(hessian)) * np.eye(70)
    for k in range(70):
        if k % 32 == 0:
            rounding = mxint4.rounding(left[:, k : k + 32].copy())
        expected[:, k] = rounding(left[:, k : k + 1])[:, 0]
        # The columns to come move to where they make up best for the error: the optimum of the quadratic form.
        rest = slice(k + 1, 70)
        move = np.linalg.solve(damped[rest, rest], damped[rest, k])
        left[:, rest] += np.outer(left[:, k] - expected[:, k], move)
    got = quantize_blocks(weight, mxint4, hessian)
    np.testing.assert_allclose(got.weight, expected, atol=1e-7)
    assert got.bits == quantize_blocks(weight, mxint4).bits


class Stored:
    """Statistics of a layer with one input that is far larger than the others, and one that is always 0."""

    def __init__(self, columns):
        hessian = random_hessian(columns)
        scale = np.ones(columns)
        scale[5], scale[9] = 50, 0
        self._square = (np.diag(hessian) * scale**2).astype(np.float32)
        root = np.sqrt(np.diag(hessian))
        self._correlation = (hessian / root / root[:, None]).astype(np.float32)

    def input_square(self, name):
        return self._square

    def correlation(self, name):
        return self._correlation

    def error(self, difference):
        root = np.sqrt(self._square)
        return np.trace(difference @ (root[:, None] * self._correlation * root) @ difference.T)


@pytest.mark.parametrize("kind", ["g64", "mxfp4", "mxint4"])
def test_gptq_and_smoothing_lower_the_error_of_the_outputs(kind):
    weight, store = random_weight(20, 128), Stored(128)
    names = [f"rtn-{kind}" if kind == "g64" else kind, f"gptq-{kind}", f"smoothquant-gptq-{kind}"]
    found = [BLOCK_METHODS[name].quantize(weight, 3, store, "layer") for name in names]
    plain, feedback, smooth = (store.error(linear.weight - weight) for linear in found)
    assert smooth < feedback < plain
    assert len({linear.bits for linear in found}) == 1  # the scale of the columns goes into what is before them
