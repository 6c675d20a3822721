"""Methods with a sparse part: which weights they keep, and what that brings."""

import numpy as np
from dense_baselines import skim_sparse, squeezellm_sparse

from skim_export.packed import PackedLinear, row_bytes
from skim_export.quantize import METHODS, quantize_linear
from skim_export.quantize.levels import fit_tables
from skim_export.quantize.solver import WeightRows


def random_weight(rows, columns, seed=0):
    return (np.random.default_rng(seed).standard_t(4, (rows, columns)) * 0.05).astype(np.float32)


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
