"""Products of every class, type and shape."""

import numpy as np
import pytest

from skim_export.packed import CLASSES
from tests.random_packed import random_packed

from .products import ExactLayer, Kernels, check_product, relative_error

ALL = list(range(CLASSES))
TOKENS = [*range(1, 18), 64, 65, 128]
# Every number of lanes of the last superblock, with codes and activations that are aligned to 16 bytes and not;
# more columns than the warps of a block load at once.
COLUMNS = [1, 4, 31, 32, 33, 64, 96, 100, 128, 160, 192, 256, 288, 320, 384, 512, 576, 640, 768, 1000, 1024, 1100, 4352]
ROWS = [1, 7, 16, 17, 31, 37, 64, 100, 129, 200]

types = pytest.mark.parametrize("dtype", ["float16", "float32"])
codebooks = pytest.mark.parametrize("entries", [np.int8, np.float16], ids=["int8", "float16"])


@pytest.fixture(scope="module")
def kernels(on_cpu):
    return Kernels(on_cpu / "libskim_cuda_on_cpu.so")


def activations(rng, tokens, columns, dtype):
    return rng.normal(size=(tokens, columns)).astype(dtype)


def check(kernels, rng, rows, columns, tokens, classes, entries, dtype):
    packed = random_packed(rng, rows, columns, classes, entries, column_scale=rng.random() < 0.5, bias=True)
    check_product(kernels, packed, activations(rng, tokens, columns, dtype))


@types
@codebooks
@pytest.mark.parametrize("cls", ALL)
def test_classes(kernels, cls, entries, dtype):
    rng = np.random.default_rng(cls)
    for columns in (100, 640):
        for tokens in (3, 12, 40):
            check(kernels, rng, 37, columns, tokens, [cls], entries, dtype)


@types
@codebooks
def test_mixed_classes(kernels, entries, dtype):
    rng = np.random.default_rng(0)
    for columns in (96, 512):
        for tokens in (2, 9, 20):
            check(kernels, rng, 100, columns, tokens, ALL, entries, dtype)


@types
@pytest.mark.parametrize("tokens", TOKENS)
def test_tokens(kernels, tokens, dtype):
    rng = np.random.default_rng(tokens)
    check(kernels, rng, 40, (260, 640)[tokens % 2], tokens, [2, 5, 11], np.int8, dtype)


@types
@pytest.mark.parametrize("columns", COLUMNS)
def test_columns(kernels, columns, dtype):
    rng = np.random.default_rng(columns)
    for tokens in (2, 11, 33):
        check(kernels, rng, 20, columns, tokens, [2, 6, 10], np.float16, dtype)


@types
@pytest.mark.parametrize("rows", ROWS)
def test_rows(kernels, rows, dtype):
    rng = np.random.default_rng(rows)
    for tokens in (1, 16, 30):
        check(kernels, rng, rows, 288, tokens, [3, 13], np.int8, dtype)


@types
@pytest.mark.parametrize("epilogue", ["store", "silu", "multiply"])
def test_epilogues(kernels, epilogue, dtype):
    rng = np.random.default_rng(0)
    for column_scale, bias in ((False, False), (False, True), (True, False)):
        for tokens in (1, 10, 50):
            packed = random_packed(rng, 30, 300, [1, 4, 12], column_scale=column_scale, bias=bias)
            check_product(kernels, packed, activations(rng, tokens, 300, dtype), epilogue, rng)


@types
def test_no_tokens(kernels, dtype):
    packed = random_packed(np.random.default_rng(0), 20, 64, [2])
    assert kernels.matmul(ExactLayer(packed), np.zeros((0, 64), dtype), 20).size == 0


@types
def test_silu_of_large_values(kernels, dtype):
    """It is 0 or the value itself, where exp overflows."""
    packed = random_packed(np.random.default_rng(0), 40, 64, [7], np.float16)
    x = activations(np.random.default_rng(1), 6, 64, dtype) * np.dtype(dtype).type(300)
    check_product(kernels, packed, x, "silu")


def test_column_scale_beyond_float16(kernels):
    """Activations times their scale may be too large for float16, if what comes of it is not."""
    rng = np.random.default_rng(0)
    packed = random_packed(rng, 40, 300, [2, 6, 11], column_scale=True)
    packed.column_scale[:] *= np.float16(500)
    packed.row_scale[:] *= np.float16(0.01)
    for tokens in (4, 40):
        x = activations(rng, tokens, 300, "float16")
        x[:, 5] = 200
        check_product(kernels, packed, x)


@types
def test_other_rows_have_no_influence(kernels, dtype):
    """A token that is not a number spoils its own outputs only."""
    rng = np.random.default_rng(0)
    packed = random_packed(rng, 50, 300, [2, 6, 11], column_scale=True)
    want = packed.dequantize().astype(np.float64)
    for tokens in (5, 14, 40):
        x = activations(rng, tokens, 300, dtype)
        x[2] = np.nan
        y = kernels.matmul(ExactLayer(packed), x, 50)
        assert np.isnan(y[2]).all()
        others = np.arange(tokens) != 2
        assert relative_error(y[others], x[others].astype(np.float64) @ want.T) < 1e-3


@pytest.mark.slow
@types
@codebooks
@pytest.mark.parametrize("columns", COLUMNS)
def test_whole_grid(kernels, columns, entries, dtype):
    rng = np.random.default_rng([columns, entries == np.int8, dtype == "float32"])
    for tokens in rng.choice(TOKENS, 6, replace=False).tolist():  # other ones in every case
        for cls in rng.choice(ALL, 3, replace=False):
            check(kernels, rng, int(rng.integers(1, 80)), columns, tokens, [cls], entries, dtype)
        check(kernels, rng, 60, columns, tokens, ALL, entries, dtype)
