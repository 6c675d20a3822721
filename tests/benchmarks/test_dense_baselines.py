"""Dense baselines against definitions written out weight by weight."""

import numpy as np
import pytest
from dense_baselines import mxfp4, rtn_grouped, skim_sparse, squeezellm_sparse

from skim_export.packed import PackedLinear, row_bytes
from skim_export.quantize import METHODS, quantize_linear
from skim_export.quantize.levels import fit_tables
from skim_export.quantize.solver import WeightRows

SHAPES = [(1, 1), (3, 64), (4, 96), (2, 130)]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


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
def test_rtn_grouped(shape, bits):
    weight = random_weight(*shape)
    weight[0] = np.abs(weight[0])  # a group on one side of zero
    got = rtn_grouped(weight, bits)
    for row, got_row in zip(weight, got.weight, strict=True):
        for start in range(0, shape[1], 64):
            group = slice(start, start + 64)
            np.testing.assert_allclose(got_row[group], rtn_of_group(row[group], bits), rtol=1e-6)
    groups = shape[0] * -(-shape[1] // 64)
    assert (got.code_bits, got.bits) == (bits, shape[0] * shape[1] * bits + groups * (16 + bits))


def test_rtn_grouped_keeps_zeros():
    assert not rtn_grouped(np.zeros((2, 64), np.float32), 3).weight.any()


def mx_of_block(block):
    largest = np.abs(block).max()
    scale = 2.0 ** (np.floor(np.log2(largest)) - 2) if largest else 1.0
    values = []
    for w in block.tolist():
        distance = np.abs(abs(w) / scale - E2M1)
        nearest = np.flatnonzero(distance == distance.min())
        index = nearest[nearest % 2 == 0][0] if len(nearest) == 2 else nearest[0]  # ties to an even mantissa
        values.append(np.copysign(E2M1[index] * scale, w))
    return np.array(values)


@pytest.mark.parametrize("shape", SHAPES)
def test_mxfp4(shape):
    weight = random_weight(*shape)
    got = mxfp4(weight)
    for row, got_row in zip(weight, got.weight, strict=True):
        for start in range(0, shape[1], 32):
            block = slice(start, start + 32)
            np.testing.assert_array_equal(got_row[block], mx_of_block(row[block]))
    assert got.bits == shape[0] * (4 * shape[1] + 8 * -(-shape[1] // 32))


def test_mxfp4_ties_go_to_even_and_large_values_saturate():
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, 7.9, -0.75, -5]
    weight = np.zeros((1, 32), np.float32)
    weight[0, : len(ties)] = ties
    expected = [0, 1, 1, 2, 2, 4, 4, 6, 6, -1, -4]
    np.testing.assert_array_equal(mxfp4(weight).weight[0, : len(ties)], expected)
    np.testing.assert_array_equal(mxfp4(weight).weight[0], mx_of_block(weight[0]))


def test_squeezellm_sparse_keeps_the_right_weights():
    rng = np.random.default_rng(1)
    weight, fisher = random_weight(40, 100), np.exp(rng.normal(-8, 2, (40, 100))).astype(np.float32)
    bits = np.full(40, 3, np.uint8)
    got = squeezellm_sparse(weight, fisher, bits)

    sensitive = np.argsort(-fisher.ravel())[:2]  # 0.05 % of 4000
    outliers = [i for i in np.argsort(-np.abs(weight).ravel()) if i not in sensitive][:16]  # 0.4 %
    kept = np.zeros(4000, bool)
    kept[[*sensitive, *outliers]] = True
    kept = kept.reshape(40, 100)
    np.testing.assert_array_equal(got.weight[kept], weight[kept].astype(np.float16))
    assert all(len(np.unique(row[~taken])) <= 8 for row, taken in zip(got.weight, kept, strict=True))
    assert got.bits == 40 * (8 * row_bytes(3, 100) + 8 * 8 + 16) + 18 * 32 + 41 * 32
    assert got.code_bits == 3

    weight[kept] *= 2  # what was taken out has no influence on the rest
    np.testing.assert_array_equal(squeezellm_sparse(weight, fisher, bits).weight[~kept], got.weight[~kept])


def test_squeezellm_sparse_beats_its_dense_part():
    rng = np.random.default_rng(2)
    weight, fisher = random_weight(64, 256), np.exp(rng.normal(-8, 2, (64, 256))).astype(np.float32)
    bits = np.full(64, 3, np.uint8)
    codes, levels, _ = fit_tables(WeightRows(weight, fisher), bits, "int8")
    dense = PackedLinear.pack(codes, levels).dequantize()
    sparse = squeezellm_sparse(weight, fisher, bits).weight
    assert (fisher * (weight - sparse) ** 2).sum() < 0.9 * (fisher * (weight - dense) ** 2).sum()


def test_skim_sparse_keeps_what_k_means_harms_most_and_beats_its_dense_part():
    rng = np.random.default_rng(3)
    weight, fisher = random_weight(40, 100), np.exp(rng.normal(-8, 2, (40, 100))).astype(np.float32)
    bits, correlation = np.full(40, 3, np.uint8), np.eye(100, dtype=np.float32)
    got = skim_sparse(weight, fisher, correlation, bits)

    codes, levels, _ = fit_tables(WeightRows(weight, fisher), bits, "int8")
    plain = PackedLinear.pack(codes, levels).dequantize()
    kept = np.zeros(4000, bool)
    kept[np.argsort(-(fisher * (weight - plain) ** 2).ravel())[:18]] = True  # 0.45 % of 4000
    kept = kept.reshape(40, 100)
    np.testing.assert_array_equal(got.weight[kept], weight[kept].astype(np.float16))
    assert got.bits == 40 * (8 * row_bytes(3, 100) + 8 * 8 + 16) + 18 * 32 + 41 * 32
    dense = quantize_linear(weight, fisher, bits, METHODS["skim+"], correlation=correlation).pack().dequantize()
    assert (fisher * (weight - got.weight) ** 2).sum() < 0.9 * (fisher * (weight - dense) ** 2).sum()
