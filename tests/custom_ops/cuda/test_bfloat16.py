"""Activations and outputs of bfloat16; work is cut as it is for float16, which test_matmul.py tries."""

from dataclasses import replace

import numpy as np
import pytest
from cuda_library import CudaLibrary
from ml_dtypes import bfloat16

from skim_export.packed import CLASSES
from tests.random_packed import random_packed

from .products import BOUNDS, ExactLayer, Kernels, address, check_product, relative_error

ALL = list(range(CLASSES))
NOT_SUPPORTED = 801

codebooks = pytest.mark.parametrize("entries", [np.int8, np.float16], ids=["int8", "float16"])


@pytest.fixture(scope="module")
def kernels(on_cpu):
    return Kernels(on_cpu / "libskim_cuda_on_cpu.so")


def activations(rng, tokens, columns):
    return rng.normal(size=(tokens, columns)).astype(bfloat16)


def check(kernels, rng, rows, columns, tokens, classes, entries=np.int8, epilogue="store"):
    packed = random_packed(rng, rows, columns, classes, entries, column_scale=rng.random() < 0.5, bias=True)
    check_product(kernels, packed, activations(rng, tokens, columns), epilogue, rng)


@codebooks
@pytest.mark.parametrize("cls", ALL)
def test_classes(kernels, cls, entries):
    rng = np.random.default_rng(cls)
    for tokens in (3, 12, 40):
        check(kernels, rng, 37, 300, tokens, [cls], entries)


@pytest.mark.parametrize("tokens", [1, 4, 5, 8, 9, 16, 17, 65])
def test_tokens(kernels, tokens):
    check(kernels, np.random.default_rng(tokens), 40, 576, tokens, [2, 5, 11])


@pytest.mark.parametrize("columns", [1, 31, 100, 256, 320, 1000, 4352])
def test_columns(kernels, columns):
    rng = np.random.default_rng(columns)
    for tokens in (2, 11, 33):
        check(kernels, rng, 20, columns, tokens, [2, 6, 10], np.float16)


@pytest.mark.parametrize("epilogue", ["silu", "multiply"])
def test_epilogues(kernels, epilogue):
    rng = np.random.default_rng(0)
    for tokens in (1, 10, 50):
        check(kernels, rng, 30, 300, tokens, [1, 4, 12], epilogue=epilogue)


@codebooks
@pytest.mark.parametrize("cls", ALL)
def test_levels_are_exact(kernels, cls, entries):
    """int8 and affine levels have no error, and those of float16 codebooks are rounded: products with 1 tell."""
    packed = random_packed(np.random.default_rng(cls), 20, 64, [cls], entries)
    packed.row_scale[:] = 1  # and the offsets
    weight = packed.dequantize()
    for x in (np.eye(64)[:3], np.eye(64)[:12], np.eye(64)):
        y = kernels.matmul(ExactLayer(packed), x.astype(bfloat16), 20)
        np.testing.assert_array_equal(y, weight[:, : len(x)].T.astype(bfloat16))


def test_activations_beyond_float16(kernels):
    """What bfloat16 is there for: sums, scaled activations and outputs up to 3e38."""
    rng = np.random.default_rng(0)
    for size, tokens in ((1e6, 4), (1e30, 12), (1e34, 40)):
        packed = random_packed(rng, 40, 300, [2, 6, 11], column_scale=True, bias=True)
        packed.column_scale[:] *= np.float16(50)
        check_product(kernels, packed, (activations(rng, tokens, 300) * bfloat16(size)).astype(bfloat16))


def test_outputs_are_rounded_to_even(kernels):
    """And are infinite where bfloat16 ends."""
    packed = random_packed(np.random.default_rng(0), 20, 32, [8 + 7])
    packed.row_scale[:] = np.float16(0)  # the bias is left
    bits = np.arange(20, dtype=np.uint32) * 0x8000 + 0x3F800000
    bias = bits.view(np.float32)
    bias[:2] = 3.4e38, -3.4e38
    y = kernels.matmul(ExactLayer(replace(packed, bias=bias)), np.zeros((1, 32), bfloat16), 20)
    np.testing.assert_array_equal(y[0], bias.astype(bfloat16))
    assert np.isinf(y[0, :2]).all()


def test_other_rows_have_no_influence(kernels):
    """A token that is not a number spoils its own outputs only."""
    rng = np.random.default_rng(0)
    packed = random_packed(rng, 50, 300, [2, 6, 11], column_scale=True)
    want = packed.dequantize().astype(np.float64)
    for tokens in (5, 14, 40):
        x = activations(rng, tokens, 300)
        x[2] = np.nan
        y = kernels.matmul(ExactLayer(packed), x, 50)
        assert np.isnan(y[2]).all()
        others = np.arange(tokens) != 2
        assert relative_error(y[others], x[others].astype(np.float64) @ want.T) < BOUNDS["bfloat16"]


@codebooks
@pytest.mark.parametrize("columns", [31, 256, 1000])
def test_gather(kernels, columns, entries):
    """Rows are rounded once, from float32: by at most 2^-8, and in the norm by less than half of that."""
    rng = np.random.default_rng(columns)
    packed = random_packed(rng, 60, columns, ALL, entries, column_scale=True)
    ids = np.concatenate([rng.permutation(60), [60, -1, 1 << 40]])
    y = kernels.gather(ExactLayer(packed), ids, columns, "bfloat16")
    assert relative_error(y[:60], packed.dequantize()[ids[:60]].astype(np.float64)) < 2**-9
    assert np.isnan(y[60:]).all()


def test_a_gpu_without_bfloat16(on_cpu, monkeypatch):
    """Turing gives an error for it, and for nothing else."""
    monkeypatch.setenv("SKIM_CUDA_CAPABILITY", "7.5")
    library = CudaLibrary(on_cpu / "libskim_cuda_on_cpu.so")
    layer = ExactLayer(random_packed(np.random.default_rng(0), 20, 64, [2])).fields
    x, y, ids = np.zeros((2, 64), np.float32), np.zeros((2, 64), np.float32), np.zeros(2, np.int64)
    for dtype, code in (("bfloat16", NOT_SUPPORTED), ("float16", 0), ("float32", 0)):
        assert library.matmul(layer, address(x), dtype, 2, address(y)) == code
        assert library.gather(layer, address(ids), 2, dtype, address(y)) == code


@pytest.mark.slow
@codebooks
@pytest.mark.parametrize("columns", [1, 4, 31, 33, 64, 96, 128, 160, 256, 288, 384, 512, 640, 1000, 1100])
def test_whole_grid(kernels, columns, entries):
    rng = np.random.default_rng([columns, entries == np.int8])
    for tokens in rng.choice([*range(1, 18), 64, 65, 128], 6, replace=False).tolist():  # other ones in every case
        for cls in rng.choice(ALL, 3, replace=False):
            check(kernels, rng, int(rng.integers(1, 80)), columns, tokens, [cls], entries)
        check(kernels, rng, 60, columns, tokens, ALL, entries)
