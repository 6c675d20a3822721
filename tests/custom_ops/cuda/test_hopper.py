"""Products of many tokens on a GPU with warpgroups: as test_matmul.py asks, and at the edges of tiles."""

from pathlib import Path

import numpy as np
import pytest
from ml_dtypes import bfloat16

from skim_export.packed import CLASSES
from tests.random_packed import random_packed

from ..native import run_tests
from .products import ExactLayer, Kernels, check_product, relative_error

ALL = list(range(CLASSES))
HOPPER = {"SKIM_CUDA_CAPABILITY": "9.0"}

dtypes = pytest.mark.parametrize("dtype", [np.float16, bfloat16], ids=["float16", "bfloat16"])


@pytest.fixture(autouse=True)
def _hopper(monkeypatch):
    for name, value in HOPPER.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def kernels(on_cpu):
    return Kernels(on_cpu / "libskim_cuda_on_cpu.so")


def check(kernels, rows, columns, tokens, classes, entries=np.int8, scale=True, epilogue="store", dtype=np.float16):
    rng = np.random.default_rng(rows + columns + tokens)
    packed = random_packed(rng, rows, columns, classes, entries, column_scale=scale, bias=True)
    check_product(kernels, packed, rng.normal(size=(tokens, columns)).astype(dtype), epilogue, rng)


@dtypes
@pytest.mark.parametrize("entries", [np.int8, np.float16], ids=["int8", "float16"])
def test_mixed_classes(kernels, entries, dtype):
    """The last superblock has one stage, of three words."""
    check(kernels, 60, 296, 20, ALL, entries, dtype=dtype)


@pytest.mark.parametrize(
    ("columns", "scale"),
    [
        (1, True),
        (100, False),  # rows are not aligned to 16 bytes
        (256, False),
        (1000, True),  # the ring of stages goes round
        (1280, False),
    ],
)
@dtypes
def test_columns(kernels, columns, scale, dtype):
    check(kernels, 40, columns, 17, [2, 6, 10], scale=scale, dtype=dtype)


@pytest.mark.parametrize(
    ("rows", "tokens"),
    [
        (65, 64),  # small tiles; the second warpgroup has one row
        (193, 128),  # of 128 rows and tokens
        (257, 128),  # large ones, and one row in the last one
        (200, 129),  # and one token in the last one
        (20, 1100),  # more tokens than are multiplied together
    ],
)
@dtypes
def test_tiles(kernels, rows, tokens, dtype):
    check(kernels, rows, 64, tokens, [12], dtype=dtype)


@dtypes
@pytest.mark.parametrize("epilogue", ["silu", "multiply"])
def test_epilogues(kernels, epilogue, dtype):
    check(kernels, 30, 300, 30, [1, 4, 12], epilogue=epilogue, dtype=dtype)


def test_other_rows_have_no_influence(kernels):
    """A token that is not a number spoils its own outputs only."""
    rng = np.random.default_rng(0)
    packed = random_packed(rng, 50, 300, [2, 6, 11], column_scale=True)
    x = rng.normal(size=(40, 300)).astype(np.float16)
    x[2] = np.nan
    y = kernels.matmul(ExactLayer(packed), x, 50)
    assert np.isnan(y[2]).all()
    others = np.arange(40) != 2
    assert relative_error(y[others], x[others].astype(np.float64) @ packed.dequantize().astype(np.float64).T) < 1e-3


@dtypes
def test_all_tiles_give_the_same_bits(kernels, dtype):
    """What comes of a token does not depend on how many others there are."""
    rng = np.random.default_rng(0)
    layer = ExactLayer(random_packed(rng, 130, 300, [2]))
    x = rng.normal(size=(129, 300)).astype(dtype)
    large, medium, small = (kernels.matmul(layer, x[:tokens], 130)[:20] for tokens in (129, 128, 20))
    np.testing.assert_array_equal(large, medium)
    np.testing.assert_array_equal(large, small)


@pytest.mark.slow
@pytest.mark.parametrize(("module", "some"), [("test_matmul.py", "float16"), ("test_bfloat16.py", "")])
def test_everything(module, some):
    """All that is asked of the other kernels, too."""
    done = run_tests([Path(__file__).parent / module], some, **HOPPER)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
