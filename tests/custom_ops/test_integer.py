"""LutMatMul at accuracy level 4: activations of 16 bits, integer levels, exact sums (docs/format.md, Arithmetic)."""

import itertools

import numpy as np
import pytest

from skim_runtime.library import kernel_names
from tests.random_packed import random_packed

from .models import matmul_model, relative_error, run, session
from .test_matmul import ALL, COLUMNS, ROWS, TOKENS

BOUND = {np.float32: 1e-5, np.float16: 1e-3}


def quantized_product(packed, x):
    """The definition: each token rounded, in float32, to multiples of max |x| / 32512; then a product in float64."""
    column_scale = packed.column_scale.astype(np.float32) if packed.column_scale.size else np.float32(1)
    scaled = x.astype(np.float32) * column_scale
    unit = np.abs(scaled).max(axis=1, keepdims=True) / np.float32(32512)
    rounded = np.rint(scaled * (np.float32(1) / unit)) * unit.astype(np.float64)
    weight = packed.dequantize().astype(np.float64) / column_scale
    return rounded @ weight.T + (packed.bias.astype(np.float64) if packed.bias.size else 0)


def check(rng, packed, tokens, dtype=np.float32):
    s = session(matmul_model(packed, dtype, accuracy_level=4))
    for m in tokens:
        x = rng.normal(size=(m, packed.in_features)).astype(dtype)
        got = run(s, x, (m, packed.out_features), dtype)
        error = relative_error(got, quantized_product(packed, x))
        assert error < BOUND[dtype], f"N={packed.out_features} K={packed.in_features} M={m}: relative error {error}"
        exact = x.astype(np.float64) @ packed.dequantize().T + (packed.bias if packed.bias.size else 0)
        assert relative_error(got, exact) < 1e-3


@pytest.mark.parametrize("columns", COLUMNS)
def test_every_class(kernel, columns):
    rng = np.random.default_rng(columns)
    for row_class, rows in zip(ALL, itertools.cycle(ROWS[:5])):
        check(rng, random_packed(rng, rows, columns, [row_class]), [1, 3])


@pytest.mark.parametrize("columns", COLUMNS)
def test_mixed_rows(kernel, columns):
    rng = np.random.default_rng(100 + columns)
    for i, rows in enumerate(ROWS):
        packed = random_packed(rng, rows, columns, rng.permutation(ALL), column_scale=i % 3 > 0, bias=i % 4 > 0)
        check(rng, packed, [1, TOKENS[(i + columns) % 5]])


@pytest.mark.parametrize("tokens", TOKENS)
def test_numbers_of_tokens(kernel, tokens):
    rng = np.random.default_rng(tokens)
    packed = random_packed(rng, 100, 1320, ALL, column_scale=True, bias=True)
    check(rng, packed, [tokens])
    check(rng, packed, [tokens], np.float16)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_all_kernels_and_threads_give_the_same_bits(dtype, monkeypatch):
    rng = np.random.default_rng(7)
    packed = random_packed(rng, 1003, 1000, ALL, column_scale=True, bias=True)
    model = matmul_model(packed, dtype, accuracy_level=4)
    for m in (1, 7, 33):
        x = rng.normal(size=(m, 1000)).astype(dtype)
        results = []
        for name in kernel_names():
            monkeypatch.setenv("SKIM_KERNEL", name)
            results += [run(session(model, threads), x, (m, 1003), dtype).tobytes() for threads in (1, 2, 3)]
        assert len(set(results)) == 1


def test_extreme_sums(kernel):
    """The largest levels and activations, all of one sign: sums come near the ends of 32 bits."""
    rng = np.random.default_rng(8)
    packed = random_packed(rng, 6, 40000, [0, 2, 7])
    packed.codebook[:] = np.where(np.arange(packed.codebook.size) < packed.codebook.size // 2, 127, -127)
    x = np.full((3, 40000), 3.0, np.float32)
    got = run(session(matmul_model(packed, accuracy_level=4)), x, (3, 6), np.float32)
    assert relative_error(got, quantized_product(packed, x)) < 1e-5


@pytest.mark.parametrize("x", [np.zeros((2, 64)), np.full((1, 64), 1e-30), np.full((1, 64), 1e30)])
def test_extreme_activations(kernel, x):
    packed = random_packed(np.random.default_rng(9), 20, 64, ALL, bias=True)
    x = x.astype(np.float32)
    got = run(session(matmul_model(packed, accuracy_level=4)), x, (len(x), 20), np.float32)
    want = x.astype(np.float64) @ packed.dequantize().T + packed.bias
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3 * np.abs(want).max())


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_an_activation_that_is_not_finite_shows(kernel, bad):
    packed = random_packed(np.random.default_rng(10), 20, 300, ALL, bias=True)
    x = np.ones((2, 300), np.float32)
    x[1, 123] = bad
    got = run(session(matmul_model(packed, accuracy_level=4)), x, (2, 20), np.float32)
    assert np.isfinite(got[0]).all()
    assert not np.isfinite(got[1]).any()


def test_float16_codebooks_stay_exact(kernel):
    packed = random_packed(np.random.default_rng(11), 40, 300, ALL, np.float16, column_scale=True)
    x = np.random.default_rng(12).normal(size=(3, 300)).astype(np.float32)
    exact, asked = (run(session(matmul_model(packed, accuracy_level=n)), x, (3, 40), np.float32) for n in (0, 4))
    np.testing.assert_array_equal(exact, asked)


@pytest.mark.parametrize("level", [-1, 5])
def test_an_unknown_level_is_refused(level):
    packed = random_packed(np.random.default_rng(13), 4, 64, [2])
    with pytest.raises(Exception, match=rf"LutMatMul node 'layer': accuracy_level must be 0\.\.4, got {level}"):
        session(matmul_model(packed, accuracy_level=level))
