"""The CUDA kernels on the CPU, compared with float64 in every order of threads."""

import os
from contextlib import contextmanager

import numpy as np
from cuda_library import CudaLibrary, PlacedLayer

# With sanitizers, or a planted fault, one must do: the order has nothing to do with what they see.
ORDERS = ("forward",) if "SKIM_TEST_CUDA_ON_CPU" in os.environ else ("forward", "reverse", "shuffled")
# Levels of float16, activations times their scale, and outputs are rounded to bfloat16, each off by at most 2^-8 of
# itself. These errors have nothing to do with each other, so in the norm their squares add up.
BOUNDS = {"float16": 1e-3, "float32": 1e-5, "bfloat16": 3**0.5 * 2**-8}


class ExactLayer:
    """A packed linear with each tensor in a heap block of exactly its size: AddressSanitizer sees what lies outside."""

    def __init__(self, packed, integers=False):
        placed = PlacedLayer(packed)
        self._blocks = {start: aligned(tensor) for start, tensor in placed.tensors.items()}
        base = 1 << 40
        self.fields = placed.fields(base, integers)
        for name in ("codes", "codebook", "row_scale"):
            pointers = getattr(self.fields, name)
            pointers[:] = [self._address(pointer - base) for pointer in pointers]
        for name in ("destination", "stored", "column_scale", "bias"):
            if pointer := getattr(self.fields, name):
                setattr(self.fields, name, self._address(pointer - base))

    def _address(self, start):
        return self._blocks[start].ctypes.data if start in self._blocks else None


class Kernels:
    """`CudaLibrary` on arrays, with checks of all that it writes."""

    def __init__(self, path):
        self._library = CudaLibrary(path)

    def matmul(self, layer, x, rows, epilogue="store", before=None):
        """x [M, K] -> y [M, rows]; with "multiply", y is `before` at first."""

        def launch(y):
            return self._library.matmul(layer.fields, address(x), x.dtype.name, len(x), address(y), epilogue)

        return in_all_orders(launch, (len(x), rows), x.dtype, before)

    def gather(self, layer, ids, columns, dtype):
        """ids [M] -> y [M, columns]."""

        def launch(y):
            return self._library.gather(layer.fields, address(ids), len(ids), dtype, address(y))

        return in_all_orders(launch, (len(ids), columns), np.dtype(dtype), None)


def in_all_orders(launch, shape, dtype, before):
    """What `launch` writes, which must be the same bits in every order."""
    results = []
    for name in ORDERS:
        y = np.frombuffer(b"\xff" * dtype.itemsize * int(np.prod(shape)), dtype)  # not a number
        y = aligned(y.reshape(shape) if before is None else before)
        with order(name):
            assert launch(y) == 0
        results.append(y)
    for other in results[1:]:
        np.testing.assert_array_equal(other.view(np.uint8), results[0].view(np.uint8))
    return results[0]


@contextmanager
def order(name):
    """The order that GPU threads run in meanwhile."""
    before = os.environ.get("SKIM_CUDA_ORDER")
    os.environ["SKIM_CUDA_ORDER"] = name
    yield
    del os.environ["SKIM_CUDA_ORDER"]
    if before is not None:
        os.environ["SKIM_CUDA_ORDER"] = before


def aligned(array):
    """A copy in a block of its own, of exactly its size."""
    copy = array.copy()
    assert copy.ctypes.data % 16 == 0
    return copy


def address(array):
    """Of a contiguous array."""
    assert array.flags.c_contiguous
    assert array.ctypes.data % 16 == 0
    return array.ctypes.data


def check_product(kernels, packed, x, epilogue="store", rng=None, integers=False):
    """Compare one product with its definition.

    What is rounded are activations and sums, which may be far larger than what is left of them: errors are relative to
    the square root of the sum of the squared terms where that is more.
    """
    x64, weight = x.astype(np.float64), packed.dequantize().astype(np.float64)
    p, terms = x64 @ weight.T, np.sqrt(x64**2 @ weight.T**2)
    if packed.bias.size:
        p += packed.bias
    before, factor = None, np.ones(p.shape)
    if epilogue == "silu":
        factor = np.exp(np.minimum(p, 0)) / (1 + np.exp(-np.abs(p)))
    elif epilogue == "multiply":
        before = rng.normal(size=p.shape).astype(x.dtype)
        factor = before.astype(np.float64)
    y = kernels.matmul(ExactLayer(packed, integers), x, packed.out_features, epilogue, before).astype(np.float64)
    error = np.linalg.norm(y - factor * p) / np.linalg.norm(factor * np.maximum(np.abs(p), terms))
    assert error < BOUNDS[x.dtype.name], f"N, K = {packed.out_features}, {packed.in_features}, M = {len(x)}"


def relative_error(got, want):
    """Not a number if an element of `got` is none."""
    return np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want)
