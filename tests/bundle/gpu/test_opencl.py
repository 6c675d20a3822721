"""Every kernel in OpenCL on PoCL, against float64 numpy."""

import numpy as np
import pytest

from skim_export.packed import CLASSES
from skim_runtime.errors import UserError
from tests.random_packed import random_packed

from .products import AFFINE, TABLES, WINDOWS, check

COLUMNS = [1, 3, 31, 33, 64, 200, 250, 256, 300, 576, 1320]
TOKENS = [1, 2, 3, 4, 5, 6, 7, 8, 37]
ALL = list(range(CLASSES))


@pytest.fixture(scope="module")
def device(bundle, opencl_context):
    from skim_export.bundle.gpu.opencl import OpenClKernels

    return OpenClKernels(bundle("opencl", TABLES + AFFINE + WINDOWS), opencl_context, ["-cl-opt-disable"])


@pytest.fixture
def matmul(device):
    return lambda packed, x: device.matmul(device.upload(packed), x)


@pytest.mark.slow
@pytest.mark.parametrize("entries", [np.int8, np.float16])
@pytest.mark.parametrize("row_class", ALL)
def test_every_class(matmul, row_class, entries):
    rng = np.random.default_rng(row_class)
    for i, columns in enumerate(COLUMNS):
        packed = random_packed(rng, [1, 7, 21][i % 3], columns, [row_class], entries, column_scale=i % 2 > 0)
        for tokens in (TOKENS[i % 8], TOKENS[(i + 3) % 9]):
            check(matmul, packed, rng.normal(size=(tokens, columns)).astype(np.float32))


@pytest.mark.parametrize("entries", [np.int8, np.float16])
@pytest.mark.parametrize("columns", COLUMNS)
def test_mixed_rows(matmul, columns, entries):
    rng = np.random.default_rng(columns)
    packed = random_packed(rng, 99, columns, rng.permutation(ALL), entries, column_scale=True)
    for tokens in (1, 3, 65):
        check(matmul, packed, rng.normal(size=(tokens, columns)).astype(np.float32))


@pytest.mark.parametrize("tokens", TOKENS)
def test_numbers_of_tokens(matmul, tokens):
    rng = np.random.default_rng(tokens)
    packed = random_packed(rng, 45, 1320, [2, 4, 15], column_scale=True)
    check(matmul, packed, rng.normal(size=(tokens, 1320)).astype(np.float32))


def test_no_device(bundle, monkeypatch, opencl_context):
    import pyopencl as cl

    from skim_export.bundle.gpu.opencl import OpenClKernels

    def fail(interactive):
        raise cl.LogicError("clGetPlatformIDs failed: PLATFORM_NOT_FOUND_KHR")

    monkeypatch.setattr(cl, "create_some_context", fail)
    with pytest.raises(UserError, match=r"no OpenCL device: .*PLATFORM_NOT_FOUND"):
        OpenClKernels(bundle("opencl", []))


def test_result_is_the_same_every_time(matmul):
    rng = np.random.default_rng(0)
    packed = random_packed(rng, 45, 1320, ALL)
    x = rng.normal(size=(3, 1320)).astype(np.float32)
    np.testing.assert_array_equal(matmul(packed, x), matmul(packed, x))


def test_other_tokens_do_not_matter(matmul):
    """A token that is not finite leaves the others alone."""
    rng = np.random.default_rng(1)
    packed = random_packed(rng, 33, 300, ALL)
    x = rng.normal(size=(70, 300)).astype(np.float32)
    x[1::2] = np.inf
    for tokens in (7, 70):
        y = matmul(packed, x[:tokens])
        check(lambda _, x, y=y: y[::2], packed, x[:tokens:2])


@pytest.mark.parametrize("entries", [np.int8, np.float16])
@pytest.mark.parametrize("columns", COLUMNS)
def test_gather(device, columns, entries):
    rng = np.random.default_rng(columns)
    packed = random_packed(rng, 40, columns, ALL, entries, column_scale=True)
    ids = rng.integers(0, 40, 60).astype(np.int32)
    y = device.gather(device.upload(packed), ids)
    # Affine levels may be rounded once where numpy rounds twice.
    np.testing.assert_allclose(y, packed.dequantize()[ids], rtol=1e-6, atol=1e-9)


def test_float16_entries_are_exact(device):
    """All widths of exponents, subnormal numbers included."""
    rng = np.random.default_rng(2)
    packed = random_packed(rng, 256, 64, [7], np.float16)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    packed.codebook[:] = np.where(np.isfinite(halves), halves, 0)
    ids = np.arange(256, dtype=np.int32)
    np.testing.assert_array_equal(device.gather(device.upload(packed), ids), packed.dequantize())
