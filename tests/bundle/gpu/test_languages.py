"""The same kernels in the languages that no GPU is there for: CUDA and Metal on the CPU, WGSL on a software device."""

import numpy as np
import pytest

from tests.random_packed import random_packed

from .products import AFFINE, TABLES, WINDOWS, check, matmul, rows_of

pytestmark = pytest.mark.slow

NAMES = ("table3_int8", "table5_float16", "table8_int8", "affine6", "window3_1_int8")
CLASSES = [c for c in TABLES + AFFINE + WINDOWS if c.name in NAMES]


@pytest.fixture(scope="module", params=["cuda", "metal", "webgpu"])
def host(request, bundle):
    if request.param == "webgpu":
        device = request.getfixturevalue("wgpu_device")
        from .wgpu_host import OnWgpu

        return OnWgpu(bundle("webgpu", CLASSES), device)
    from .on_cpu_host import OnCpu

    return OnCpu(bundle(request.param, CLASSES), request.getfixturevalue("cpp_compiler"))


@pytest.mark.parametrize("columns", [3, 300, 1320])
def test_products(host, columns):
    rng = np.random.default_rng(columns)
    mixed = random_packed(rng, 67, columns, [2, 7, 13], column_scale=True)
    halves = random_packed(rng, 67, columns, [4], np.float16)
    for packed in (mixed, halves):
        for tokens in (1, 7, 40):
            x = rng.normal(size=(tokens, columns)).astype(np.float32)
            check(lambda packed, x: matmul(host, packed, x), packed, x)


def test_gather(host):
    rng = np.random.default_rng(0)
    packed = random_packed(rng, 40, 300, [2, 7, 13], column_scale=True)
    ids = rng.integers(0, 40, 20).astype(np.int32)
    np.testing.assert_allclose(rows_of(host, packed, ids), packed.dequantize()[ids], rtol=1e-6, atol=1e-9)
