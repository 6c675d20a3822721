"""Rows of W by their numbers."""

import numpy as np
import pytest

from skim_export.packed import CLASSES
from tests.random_packed import random_packed

from .products import BOUNDS, ExactLayer, Kernels, relative_error

pytestmark = pytest.mark.parametrize("dtype", ["float16", "float32"])


@pytest.fixture(scope="module")
def kernels(on_cpu):
    return Kernels(on_cpu / "libskim_cuda_on_cpu.so")


@pytest.mark.parametrize("entries", [np.int8, np.float16], ids=["int8", "float16"])
@pytest.mark.parametrize("column_scale", [False, True])
@pytest.mark.parametrize("columns", [1, 31, 100, 256, 384, 1000, 1024])
def test_rows(kernels, columns, column_scale, entries, dtype):
    rng = np.random.default_rng(columns)
    for classes in ([15], [2], list(range(CLASSES))):
        packed = random_packed(rng, 60, columns, classes, entries, column_scale=column_scale, bias=True)
        ids = rng.permutation(np.resize(np.arange(60), 70))
        y = kernels.gather(ExactLayer(packed), ids, columns, dtype)
        assert relative_error(y, packed.dequantize()[ids].astype(np.float64)) < BOUNDS[dtype]


def test_ids_out_of_range(kernels, dtype):
    packed = random_packed(np.random.default_rng(0), 10, 100, [2, 12])
    ids = np.array([3, -1, 9, 10, 1 << 40, -(1 << 62), 0])
    y = kernels.gather(ExactLayer(packed), ids, 100, dtype)
    bad = (ids < 0) | (ids >= 10)
    assert np.isnan(y[bad]).all()
    assert relative_error(y[~bad], packed.dequantize()[ids[~bad]].astype(np.float64)) < BOUNDS[dtype]


def test_no_ids(kernels, dtype):
    packed = random_packed(np.random.default_rng(0), 10, 100, [2])
    assert kernels.gather(ExactLayer(packed), np.zeros(0, np.int64), 100, dtype).size == 0
