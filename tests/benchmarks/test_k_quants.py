"""k-quants: sizes and values against the gguf package, the search against slower and simpler ones."""

import gguf
import numpy as np
import pytest
from k_quants import K_QUANTS, k_quantize, quantize_super_blocks

TYPES = list(K_QUANTS)


def random_blocks(count, seed=0):
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(0, 0.7, (count, 16, 1)))
    values = rng.standard_t(4, (count, 16, 16)) * spread * 0.05
    return values.reshape(count, 256).astype(np.float32), rng.uniform(0.1, 2, (count, 256)).astype(np.float32)


def as_bytes(array):
    return np.ascontiguousarray(array).view(np.uint8).reshape(len(array), -1)


def low_bits(codes, bits, run):
    """Codes `[B, 256]` of `bits` bits in bytes: runs of `run` bytes hold the same place of 8 / bits runs of codes."""
    places = codes.reshape(len(codes), -1, 8 // bits, run).astype(np.uint8)
    shifts = (bits * np.arange(8 // bits, dtype=np.uint8))[:, None]
    return np.bitwise_or.reduce(places << shifts, axis=2).reshape(len(codes), -1)


def six_bit_pairs(scales, minima):
    """12 bytes of the 8 scales and 8 minima of Q4_K and Q5_K."""
    s, m = scales.astype(np.uint8), minima.astype(np.uint8)
    first = s[:, :4] | (s[:, 4:] >> 4 << 6)
    second = m[:, :4] | (m[:, 4:] >> 4 << 6)
    return np.hstack([first, second, (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)])


def ggml_bytes(name, blocks):
    """Super-blocks as ggml lays them out."""
    d, dmin = as_bytes(blocks.d), as_bytes(blocks.dmin)
    codes = blocks.codes.reshape(len(blocks.d), 256)
    if name == "q2_k":
        pairs = (blocks.scales | (blocks.minima << 4)).astype(np.uint8)
        return np.hstack([pairs, low_bits(codes, 2, 32), d, dmin])
    if name == "q3_k":
        unsigned = (codes + 4).astype(np.uint8)
        s = (blocks.scales + 32).astype(np.uint8)
        low = (s[:, :8] & 15) | ((s[:, 8:] & 15) << 4)
        high = low_bits(s >> 4, 2, 4)
        return np.hstack([low_bits(unsigned >> 2, 1, 32), low_bits(unsigned & 3, 2, 32), low, high, d])
    if name == "q6_k":
        unsigned = (codes + 32).astype(np.uint8)
        scales = as_bytes(blocks.scales.astype(np.int8))
        return np.hstack([low_bits(unsigned & 15, 4, 64), low_bits(unsigned >> 4, 2, 32), scales, d])
    scales = six_bit_pairs(blocks.scales, blocks.minima)
    high = low_bits(codes >> 4, 1, 32) if name == "q5_k" else codes[:, :0].astype(np.uint8)
    return np.hstack([d, dmin, scales, high, low_bits(codes & 15, 4, 32)])


@pytest.mark.parametrize("name", TYPES)
def test_it_is_what_ggml_would_read(name):
    values, importance = random_blocks(20)
    values[1] = 0
    values[2] = np.abs(values[2])
    values[3] = -np.abs(values[3]) - 0.01
    values[4] = 0.03
    values[5, :40] = 0
    blocks = quantize_super_blocks(values, importance, K_QUANTS[name])
    kind = gguf.GGMLQuantizationType[name.upper()]
    packed = ggml_bytes(name, blocks)
    assert gguf.GGML_QUANT_SIZES[kind] == (256, K_QUANTS[name].nbytes) == (256, packed.shape[1])
    np.testing.assert_array_equal(blocks.dequantize(), gguf.quants.dequantize(packed, kind))


@pytest.mark.parametrize("name", TYPES)
def test_codes_are_the_nearest(name):
    values, importance = random_blocks(3)
    kind = K_QUANTS[name]
    blocks = quantize_super_blocks(values, importance, kind)
    half = 0 if kind.asymmetric else 2 ** (kind.bits - 1)
    for b in range(3):
        for i, block in enumerate(values[b].reshape(-1, kind.block)):
            scale = float(blocks.d[b]) * int(blocks.scales[b, i])
            levels = scale * np.arange(-half, 2**kind.bits - half) - float(blocks.dmin[b]) * int(blocks.minima[b, i])
            got = blocks.dequantize()[b].reshape(-1, kind.block)[i]
            least = np.abs(block[:, None] - levels).min(axis=1)
            np.testing.assert_allclose(np.abs(block - got), least, rtol=1e-4, atol=1e-6)


def from_the_range(values, kind):
    """Scales straight from the smallest and largest weight of a block, rounded; no search."""
    blocks = values.reshape(len(values), -1, kind.block).astype(np.float64)
    if kind.asymmetric:
        low = np.minimum(blocks.min(axis=2), 0)
        scale, offset = (blocks.max(axis=2) - low) / (2**kind.bits - 1), -low
        highest, half = 2**kind.bits - 1, 0
    else:
        half = 2 ** (kind.bits - 1)
        scale, offset = np.abs(blocks).max(axis=2) / half, np.zeros(blocks.shape[:2])
        highest = half - 1
    limit = kind.scale_limit if kind.asymmetric else kind.scale_limit - 1
    d, dmin = (np.maximum(x.max(axis=1, keepdims=True) / limit, 1e-12) for x in (scale, offset))
    scale, offset = np.maximum(np.rint(scale / d), 1) * d, np.rint(offset / dmin) * dmin
    codes = np.clip(np.rint((blocks + offset[..., None]) / scale[..., None]), -half, highest)
    return (codes * scale[..., None] - offset[..., None]).reshape(values.shape)


@pytest.mark.parametrize("name", TYPES)
def test_the_search_gains_over_the_range(name):
    values, importance = random_blocks(50)
    got = quantize_super_blocks(values, importance, K_QUANTS[name]).dequantize()
    simple = from_the_range(values, K_QUANTS[name])
    error, other = ((importance * (values - hat) ** 2).sum() for hat in (got, simple))
    assert error < 0.95 * other


@pytest.mark.parametrize("name", TYPES)
def test_importance_counts(name):
    rng = np.random.default_rng(3)
    weight = (rng.normal(size=(12, 192)) * 0.05).astype(np.float32)
    importance = np.exp(rng.normal(0, 2, (1, 192))).astype(np.float32)
    with_it, without = (k_quantize(weight, name, x).weight for x in (importance, np.ones((1, 192), np.float32)))
    assert (importance * (weight - with_it) ** 2).sum() < 0.95 * (importance * (weight - without) ** 2).sum()


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e3])
@pytest.mark.filterwarnings("error")
def test_sizes_of_any_kind(name, size):
    weight = (random_blocks(3)[0] * size).astype(np.float32)
    error = np.linalg.norm((k_quantize(weight, name).weight - weight) / size) / np.linalg.norm(weight / size)
    assert error == pytest.approx(1) if size < 1e-10 else error < 0.4  # a float16 factor cannot be so small


def test_importance_of_zero_counts_all_alike():
    values, _ = random_blocks(2)
    zeros, ones = (quantize_super_blocks(values, f(values), K_QUANTS["q4_k"]) for f in (np.zeros_like, np.ones_like))
    np.testing.assert_array_equal(zeros.dequantize(), ones.dequantize())


def test_a_matrix_is_cut_into_whole_super_blocks():
    weight = random_blocks(3)[0].ravel()[:700].reshape(7, 100)
    got = k_quantize(weight, "q5_k")
    assert got.weight.shape == (7, 100)
    assert got.bits == 3 * 176 * 8
    assert np.linalg.norm(got.weight - weight) < 0.06 * np.linalg.norm(weight)
    padded = np.zeros((1, 768), np.float32)
    padded[0, :700] = weight.ravel()
    np.testing.assert_array_equal(k_quantize(padded, "q5_k").weight.ravel()[:700], got.weight.ravel())


def test_chunks_make_no_difference(monkeypatch):
    values, _ = random_blocks(10)
    whole = k_quantize(values, "q3_k").weight
    monkeypatch.setattr("k_quants.CHUNK", 3)
    np.testing.assert_array_equal(k_quantize(values, "q3_k").weight, whole)
