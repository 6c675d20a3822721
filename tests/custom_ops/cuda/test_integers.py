"""Decoding with activations rounded to integers of 16 bits."""

import numpy as np
import pytest
from ml_dtypes import bfloat16

from tests.random_packed import random_packed

from .products import ExactLayer, Kernels, check_product, relative_error

CLASSES = [*range(4), *range(8, 21)]  # the levels are bytes in registers
LARGEST = 32512  # that a token's largest magnitude becomes

types = pytest.mark.parametrize("dtype", [np.float16, bfloat16], ids=["float16", "bfloat16"])


@pytest.fixture(scope="module")
def kernels(on_cpu):
    return Kernels(on_cpu / "libskim_cuda_on_cpu.so")


@pytest.fixture
def hopper(monkeypatch):
    """A GPU whose blocks have room for 16 tokens."""
    monkeypatch.setenv("SKIM_CUDA_CAPABILITY", "9.0")


def check(kernels, rows, columns, tokens, classes, dtype, epilogue="store", scale=True):
    rng = np.random.default_rng(rows + columns + tokens)
    packed = random_packed(rng, rows, columns, classes, column_scale=scale, bias=True)
    x = rng.normal(size=(tokens, columns)).astype(dtype)
    check_product(kernels, packed, x, epilogue, rng, integers=True)


def quantized(x, column_scale):
    """Integers [M, K] and units [M], as docs/format.md has them."""
    x = x.astype(np.float32) * (column_scale.astype(np.float32) if column_scale.size else np.float32(1))
    unit = np.abs(x).max(axis=1) / np.float32(LARGEST)
    return np.rint(x * (np.float32(1) / unit)[:, None]), unit


@types
@pytest.mark.parametrize("cls", CLASSES)
def test_classes(kernels, hopper, cls, dtype):
    check(kernels, 37, 300, 3, [cls], dtype)
    check(kernels, 37, 300, 12, [cls], dtype)


@types
@pytest.mark.parametrize("columns", [1, 31, 100, 256, 1000, 4352])
def test_columns(kernels, columns, dtype):
    check(kernels, 40, columns, 2, [1, 3, 10, 13], dtype, scale=columns % 2 == 0)


@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 8, 9, 16])
def test_tokens(kernels, hopper, tokens):
    check(kernels, 70, 576, tokens, CLASSES, np.float16)


@pytest.mark.parametrize("epilogue", ["silu", "multiply"])
def test_epilogues(kernels, epilogue):
    check(kernels, 30, 300, 4, [2, 9], np.float16, epilogue)


@pytest.mark.parametrize("tokens", [2, 11])
@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_rounded(kernels, hopper, cls, tokens):
    """Nothing but the activations, once: against integers in float64."""
    rng = np.random.default_rng(cls)
    packed = random_packed(rng, 40, 520, [cls], column_scale=True)
    packed.column_scale[:] /= packed.column_scale.max()  # or another power of two would be rounded
    x = rng.normal(size=(tokens, 520)).astype(np.float16)
    q, unit = quantized(x, packed.column_scale)
    without = packed.dequantize().astype(np.float64) / packed.column_scale.astype(np.float64)
    y = kernels.matmul(ExactLayer(packed, integers=True), x, 40)
    np.testing.assert_allclose(y, (q * unit[:, None]) @ without.T, rtol=2**-10, atol=1e-4)


def test_the_bound(kernels):
    """An activation is off by at most half a unit, so outliers cost the others."""
    rng = np.random.default_rng(0)
    packed = random_packed(rng, 60, 1024, [2, 11])
    weight = packed.dequantize().astype(np.float64)
    x = rng.normal(size=(3, 1024)).astype(np.float16)
    x[1, 7], x[2, 500] = 1000, -30000
    want = x.astype(np.float64) @ weight.T
    y = kernels.matmul(ExactLayer(packed, integers=True), x, 60).astype(np.float64)
    half_unit = np.abs(x.astype(np.float64)).max(axis=1, keepdims=True) / LARGEST / 2
    rounded = np.abs(want) * 2**-10 + np.abs(weight).sum(axis=1) * 1e-6  # outputs, and float32
    assert (np.abs(y - want) <= half_unit * np.abs(weight).sum(axis=1) + rounded).all()
    # On random data errors are independent: of the norm, a unit over the square root of 12 for each column.
    expected = 2 * half_unit[:, 0] / 12**0.5 * np.linalg.norm(weight)
    error = np.linalg.norm(y - want, axis=1)
    assert (error < 2 * expected + 2**-11 * np.linalg.norm(want, axis=1)).all()


def test_the_largest_sums(kernels):
    """65536 columns of the largest levels and activations, of both signs."""
    packed = random_packed(np.random.default_rng(0), 18, 65536, [0, 15])
    packed.codebook[:] = -128
    packed.codes[:] = 255
    for sign in (1, -1):
        x = np.full((1, 65536), sign, np.float16)
        x[0, 1:] *= np.float16(0.999)  # so that the lower bytes are large
        y = kernels.matmul(ExactLayer(packed, integers=True), x, 18)
        want = x.astype(np.float64) @ packed.dequantize().astype(np.float64).T
        finite = np.abs(want) < 65000
        assert relative_error(y[finite], want[finite]) < 1e-3


def test_tokens_without_a_unit(kernels):
    """Zeros give the bias; what is not finite spoils its own outputs only."""
    rng = np.random.default_rng(0)
    packed = random_packed(rng, 50, 300, [2, 11], column_scale=True, bias=True)
    x = rng.normal(size=(4, 300)).astype(np.float16)
    x[0], x[1, 5], x[2, 7] = 0, np.nan, np.inf
    y = kernels.matmul(ExactLayer(packed, integers=True), x, 50)
    np.testing.assert_array_equal(y[0], packed.bias.astype(np.float16))
    assert not np.isfinite(y[1:3]).any()
    want = x[3].astype(np.float64) @ packed.dequantize().astype(np.float64).T + packed.bias
    assert relative_error(y[3], want) < 1e-3


@pytest.mark.parametrize(
    ("classes", "entries", "capability"),
    [([2, 4], np.int8, "8.0"), ([2], np.float16, "8.0"), ([2], np.int8, "7.5")],
    ids=["wide tables", "float16 tables", "Turing"],
)
def test_where_there_are_none(kernels, monkeypatch, classes, entries, capability):
    """The same bits as without: where integers do not serve, they are not taken."""
    monkeypatch.setenv("SKIM_CUDA_CAPABILITY", capability)
    rng = np.random.default_rng(0)
    packed = random_packed(rng, 40, 300, classes, entries)
    x = rng.normal(size=(2, 300)).astype(np.float16)
    got, want = (kernels.matmul(ExactLayer(packed, integers), x, 40) for integers in (True, False))
    np.testing.assert_array_equal(got, want)
