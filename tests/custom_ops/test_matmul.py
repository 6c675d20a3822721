"""LutMatMul against float64 numpy: every width and kind with every tail of K, both codebook types."""

import itertools

import numpy as np
import pytest

from skim_export.packed import CLASSES
from tests.random_packed import random_packed

from .models import matmul_model, relative_error, run, session

ROWS = [1, 31, 32, 33, 64, 192, 576, 1000, 1536]
COLUMNS = [1, 31, 32, 33, 64, 192, 576, 1000, 1536]
TOKENS = [1, 2, 3, 7, 16, 33, 128]
BOUND = {np.float32: 1e-5, np.float16: 1e-3}
ALL = list(range(CLASSES))


def check(rng, packed, tokens, dtype=np.float32, **attributes):
    n, k = packed.out_features, packed.in_features
    weight = packed.dequantize().astype(np.float64)
    bias = packed.bias.astype(np.float64) if packed.bias.size else 0
    s = session(matmul_model(packed, dtype, **attributes))
    for m in tokens:
        x = rng.normal(size=(m, k)).astype(dtype)
        error = relative_error(run(s, x, (m, n), dtype), x.astype(np.float64) @ weight.T + bias)
        assert error < BOUND[dtype], f"N={n} K={k} M={m}: relative error {error}"


@pytest.mark.parametrize("entries", [np.int8, np.float16])
@pytest.mark.parametrize("columns", COLUMNS)
def test_every_class(kernel, columns, entries):
    rng = np.random.default_rng(columns)
    for row_class, rows in zip(ALL, itertools.cycle(ROWS[:5])):
        check(rng, random_packed(rng, rows, columns, [row_class], entries), [1, 3])


# Every N with every K; each pair gets two of the numbers of tokens, a one-token and a many-token path among them.
@pytest.mark.parametrize("columns", COLUMNS)
def test_mixed_rows(kernel, columns):
    rng = np.random.default_rng(100 + columns)
    for i, rows in enumerate(ROWS):
        entries = [np.int8, np.float16][i % 2]
        packed = random_packed(
            rng, rows, columns, rng.permutation(ALL), entries, column_scale=i % 3 > 0, bias=i % 4 > 0
        )
        check(rng, packed, [1, TOKENS[(i + columns) % 5]])


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("entries", [np.int8, np.float16])
def test_numbers_of_tokens(kernel, tokens, entries):
    rng = np.random.default_rng(tokens)
    packed = random_packed(rng, 100, 1320, ALL, entries, column_scale=True, bias=True)
    check(rng, packed, [tokens])
    check(rng, packed, [tokens], np.float16)


@pytest.mark.parametrize("columns", COLUMNS)
def test_float16_activations(kernel, columns):
    rng = np.random.default_rng(200 + columns)
    for entries in (np.int8, np.float16):
        check(rng, random_packed(rng, 33, columns, ALL, entries, column_scale=True), [1, 5], np.float16)


def test_more_tokens_than_a_block(kernel):
    rng = np.random.default_rng(5)
    check(rng, random_packed(rng, 40, 64, ALL, bias=True), [257, 700])


@pytest.mark.parametrize("shape", [(64,), (5, 64), (2, 3, 64), (0, 64), (2, 0, 64)])
def test_ranks(kernel, shape):
    rng = np.random.default_rng(6)
    packed = random_packed(rng, 20, 64, [2, 9])
    x = rng.normal(size=shape).astype(np.float32)
    y = session(matmul_model(packed)).run(None, {"X": x})[0]
    assert y.shape == (*shape[:-1], 20)
    np.testing.assert_allclose(y, x @ packed.dequantize().T, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_bits_do_not_depend_on_the_number_of_threads(kernel, dtype):
    rng = np.random.default_rng(7)
    packed = random_packed(rng, 1003, 1000, ALL, column_scale=True, bias=True)
    model = matmul_model(packed, dtype)
    for m in (1, 7, 33):
        x = rng.normal(size=(m, 1000)).astype(dtype)
        one, two, three = (run(session(model, threads), x, (m, 1003), dtype) for threads in (1, 2, 3))
        np.testing.assert_array_equal(one.view(np.uint8), two.view(np.uint8))
        np.testing.assert_array_equal(one.view(np.uint8), three.view(np.uint8))


def test_the_output_shape_is_inferred():
    packed = random_packed(np.random.default_rng(8), 20, 64, [2])
    for dtype, name in ((np.float32, "tensor(float)"), (np.float16, "tensor(float16)")):
        output = session(matmul_model(packed, dtype, x_shape=["batch", 3, 64])).get_outputs()[0]
        assert output.shape == ["batch", 3, 20]
        assert output.type == name
    # An unnamed unknown dimension leaves the shape unknown, and the model runs.
    s = session(matmul_model(packed, x_shape=[None, 64]))
    assert s.run(None, {"X": np.ones((3, 64), np.float32)})[0].shape == (3, 20)


def test_a_wrong_shape_is_refused(kernel):
    packed = random_packed(np.random.default_rng(9), 20, 64, [2])
    s = session(matmul_model(packed))
    for shape in ((2, 63), (64, 1), ()):
        with pytest.raises(Exception, match=r"LutMatMul node 'layer': the last dimension of X must be K=64, got shape"):
            s.run(None, {"X": np.ones(shape, np.float32)})
