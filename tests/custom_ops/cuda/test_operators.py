"""The operators for CUDA, driven by onnxruntime on the CPU: kernels under emulation, on a GPU with the host's memory.

This GPU ends the process where the operators mistake one memory for the other.
"""

import ctypes
import gc
import itertools
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from ml_dtypes import bfloat16
from onnx import helper

from skim_export.packed import CLASSES, PackedLinear
from skim_runtime.aligned import aligned_copy
from skim_runtime.errors import UserError
from skim_runtime.measure.bandwidth import read_gpu, reading_model
from skim_runtime.measure.session import open_session
from skim_runtime.operators import LUT_GATHER
from tests.random_packed import random_packed

from ..models import TYPES, attributes, gather_model, initializers, matmul_model, model, relative_error, run, session
from ..native import ROOT, build_cuda_on_cpu, run_tests
from ..test_read_memory import checksum
from ..test_swiglu import expected, pair, swiglu_model
from .products import BOUNDS

BOUND = {np.float32: 1e-5, np.float16: 1e-3, bfloat16: BOUNDS["bfloat16"]}
ALL = list(range(CLASSES))


@pytest.fixture(scope="module")
def library():
    return build_cuda_on_cpu().parent / "ort_on_cpu" / "libskim_ops_on_cpu.so"


@pytest.fixture
def blocks(library):
    """Counts blocks of the fake GPU's memory; none must be left in the end."""
    count = ctypes.CDLL(str(library)).FakeGpuBlocks
    yield count
    gc.collect()
    assert count() == 0


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("entries", [np.int8, np.float16])
def test_matmul(library, blocks, dtype, entries):
    rng = np.random.default_rng(0)
    for (rows, columns, scale, bias), m in zip(
        [(1, 1, False, False), (33, 100, True, False), (100, 256, False, True), (64, 640, True, True)],
        itertools.cycle([1, 3, 17]),
    ):
        packed = random_packed(rng, rows, columns, ALL[:rows], entries, column_scale=scale, bias=bias)
        x = rng.normal(size=(m, columns)).astype(dtype)
        want = x.astype(np.float64) @ packed.dequantize().T + (packed.bias if bias else 0)
        got = run(session(matmul_model(packed, dtype), library=library), x, (m, rows), dtype)
        assert relative_error(got, want) < BOUND[dtype]


@pytest.mark.parametrize(("factor", "size"), [(2**-12, 3e4), (1, 1e3), (500, 300)])
def test_column_scales_of_any_size(library, blocks, factor, size):
    """Scaled activations don't leave the range of float16, where outputs don't."""
    packed = random_packed(np.random.default_rng(1), 20, 64, [2, 9], column_scale=True)
    packed = replace(
        packed,
        column_scale=(packed.column_scale * factor).astype(np.float16),
        row_scale=(packed.row_scale / 256).astype(np.float16),
    )
    x = (np.random.default_rng(2).normal(size=(2, 64)).clip(-2, 2) * size).astype(np.float16)
    got = run(session(matmul_model(packed, np.float16), library=library), x, (2, 20), np.float16)
    assert relative_error(got, x.astype(np.float64) @ packed.dequantize().T) < 1e-3


@pytest.mark.parametrize("dtype", list(BOUND))
def test_swiglu(library, blocks, dtype):
    rng = np.random.default_rng(3)
    gate, up = pair(rng, 40, 160, (True, False))
    s = session(swiglu_model(gate, up, dtype), library=library)
    assert blocks() == 2
    for m in (1, 18):
        x = rng.normal(size=(m, 160)).astype(dtype)
        assert relative_error(run(s, x, (m, 40), dtype), expected(gate, up, x)) < 2 * BOUND[dtype]


@pytest.mark.parametrize("dtype", list(BOUND))
def test_gather(library, blocks, dtype):
    rng = np.random.default_rng(4)
    packed = random_packed(rng, 50, 200, ALL, column_scale=True)
    ids = rng.integers(0, 50, (2, 3))
    s = session(gather_model(packed, dtype), library=library)
    assert relative_error(run(s, ids, (2, 3, 200), dtype), packed.dequantize()[ids]) < BOUND[dtype]
    # A GPU can't refuse an id.
    bad = run(s, np.array([7, 50, -1]), (3, 200), dtype)
    assert relative_error(bad[0], packed.dequantize()[7]) < BOUND[dtype]
    assert np.isnan(bad[1:]).all()


def test_runs_neither_allocate_nor_wait(library, blocks):
    """So a CUDA graph can capture them."""
    rng = np.random.default_rng(12)
    packed, (gate, up) = random_packed(rng, 40, 96, ALL, column_scale=True, bias=True), pair(rng, 40, 96, (True, True))
    sessions = [
        (session(model, library=library), feed, (3, *shape), np.float16)
        for model, feed, shape in (
            (matmul_model(packed, np.float16), rng.normal(size=(3, 96)).astype(np.float16), (40,)),
            (swiglu_model(gate, up, np.float16), rng.normal(size=(3, 96)).astype(np.float16), (40,)),
            (gather_model(packed, np.float16), np.array([1, 5, 39]), (96,)),
        )
    ]
    calls = ctypes.CDLL(str(library)).FakeGpuCalls
    before = calls()
    assert before > 0
    for made, feed, shape, dtype in sessions:
        for _ in range(3):
            assert np.isfinite(run(made, feed, shape, dtype)).all()
    assert calls() == before


def test_two_sessions(library, blocks):
    """Each has its own weights, which go with it and not before."""
    rng = np.random.default_rng(13)
    layers = [random_packed(rng, 30, 64, ALL[:k], column_scale=True) for k in (3, 9)]
    sessions = [session(matmul_model(packed), library=library) for packed in layers]
    x = rng.normal(size=(2, 64)).astype(np.float32)
    for _ in range(2):
        for made, packed in zip(sessions, layers, strict=True):
            assert relative_error(run(made, x, (2, 30), np.float32), x @ packed.dequantize().T) < 1e-5
    assert blocks() == 2
    del made, sessions[0]
    gc.collect()
    assert blocks() == 1
    assert relative_error(run(sessions[0], x, (2, 30), np.float32), x @ layers[1].dequantize().T) < 1e-5


def test_reading_memory(library):
    made = open_session(reading_model(1, 0), 1, library)
    for size in (0, 1, 8, 15, 16, 17, 1000, 300_077):
        data = aligned_copy(np.random.default_rng(size).integers(0, 256, size, np.uint8))
        (got,) = made.run(None, {"data": data})
        assert got.tolist() == [checksum(data)]


def test_the_bandwidth_of_a_gpu(library):
    found = read_gpu(library, device="cpu", nbytes=1 << 16)
    assert found.bytes_per_second > 0
    with pytest.raises(UserError, match="the GPU's memory can't be read to measure it: "):
        read_gpu(ROOT / "README.md", device="cpu")


def test_nothing_to_do(library, blocks):
    packed = random_packed(np.random.default_rng(5), 20, 64, [2])
    assert session(matmul_model(packed), library=library).run(None, {"X": np.ones((2, 0, 64), np.float32)})[0].size == 0
    assert session(gather_model(packed), library=library).run(None, {"ids": np.ones(0, np.int64)})[0].shape == (0, 64)


def tied_model(packed):
    """An embedding and a head on the same initializers."""
    names, gather = PackedLinear.TENSORS, LUT_GATHER.node_attributes([packed], dtype=10)
    nodes = [
        helper.make_node("LutGather", ["ids", *names], ["E"], "embedding", domain="ai.skim", **gather),
        helper.make_node("LutMatMul", ["E", *names], ["Y"], "head", domain="ai.skim", **attributes(packed)),
    ]
    ids = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["tokens"])
    y = helper.make_tensor_value_info("Y", TYPES[np.dtype(np.float16)], None)
    return model(nodes, [ids], [y], initializers(packed))


def test_tied_weights_are_uploaded_once(library, blocks):
    rng = np.random.default_rng(6)
    packed = random_packed(rng, 100, 96, ALL, column_scale=True)
    s = session(tied_model(packed), library=library)
    assert blocks() == 1
    ids = rng.integers(0, 100, 5)
    weight = packed.dequantize().astype(np.float64)
    assert relative_error(run(s, ids, (5, 100), np.float16), weight[ids] @ weight.T) < 2e-3


def test_an_address_that_comes_back_with_other_contents(library, blocks):
    packed = random_packed(np.random.default_rng(7), 40, 96, [3])
    codes = packed.codes.copy()
    shared = ort.OrtValue.ortvalue_from_numpy(codes)
    x = np.ones((1, 96), np.float32)
    sessions = []
    for change, uploads in ((0, 1), (0, 1), (1, 2)):
        codes ^= np.uint8(change)
        sessions.append(session(matmul_model(packed), library=library, shared={"codes": shared}))
        assert blocks() == uploads
        want = x @ replace(packed, codes=codes).dequantize().T.astype(np.float64)
        assert relative_error(run(sessions[-1], x, (1, 40), np.float32), want) < 1e-5


def test_weights_that_the_runtime_keeps_on_the_gpu(library, blocks, monkeypatch):
    monkeypatch.setenv("SKIM_FAKE_GPU_WEIGHTS", "1")
    packed = random_packed(np.random.default_rng(8), 40, 96, ALL, column_scale=True, bias=True)
    x = np.ones((1, 96), np.float32)
    got = run(session(matmul_model(packed), library=library), x, (1, 40), np.float32)
    assert relative_error(got, x @ packed.dequantize().T.astype(np.float64) + packed.bias) < 1e-5


FULL = (
    r"LutMatMul node 'layer': CUDA: out of memory \(codes and the tensors beside it take \d+ bytes; "
    r"of 1000 bytes of the GPU 1000 are free\)"
)


def test_a_full_gpu(library, blocks, monkeypatch):
    monkeypatch.setenv("SKIM_FAKE_GPU_BYTES", "1000")
    packed = random_packed(np.random.default_rng(9), 100, 256, [2])
    with pytest.raises(Exception, match=FULL):
        session(matmul_model(packed), library=library)


def test_memory_that_is_not_aligned(library, blocks):
    packed = random_packed(np.random.default_rng(10), 20, 64, [2])
    s = session(matmul_model(packed), library=library)
    y = np.empty(21, np.float32)
    binding = s.io_binding()
    binding.bind_cpu_input("X", np.ones((1, 64), np.float32))
    binding.bind_output("Y", "cpu", 0, np.float32, (1, 20), y[1:].ctypes.data)
    with pytest.raises(Exception, match="LutMatMul node 'layer': Y must begin at a multiple of 16 bytes"):
        s.run_with_iobinding(binding)


def test_a_wrong_shape_is_refused(library, blocks):
    s = session(matmul_model(random_packed(np.random.default_rng(11), 20, 64, [2])), library=library)
    with pytest.raises(Exception, match="LutMatMul node 'layer': the last dimension of X must be K=64, got shape"):
        s.run(None, {"X": np.ones((2, 63), np.float32)})


@pytest.mark.parametrize("make", [matmul_model, gather_model])
def test_a_gpu_without_bfloat16(library, monkeypatch, make):
    monkeypatch.setenv("SKIM_CUDA_CAPABILITY", "7.5")
    packed = random_packed(np.random.default_rng(12), 20, 64, [2])
    session(make(packed, np.float16), library=library)
    with pytest.raises(
        Exception,
        match=r"Lut\w+ node '\w+': bfloat16 needs a GPU of compute capability 8\.0 or newer, and this one has 7\.5: "
        "export the model with float16",
    ):
        session(make(packed, bfloat16), library=library)


def test_an_unknown_dtype_is_refused(library):
    proto = gather_model(random_packed(np.random.default_rng(13), 20, 64, [2]))
    next(a for a in proto.graph.node[0].attribute if a.name == "dtype").i = 11
    with pytest.raises(Exception, match=r"dtype must be 1 \(float32\), 10 \(float16\) or 16 \(bfloat16\), got 11"):
        session(proto, library=library)


def test_refusals(library):
    """What is invalid for the CPU is so for the GPU."""
    done = run_tests([ROOT / "tests/custom_ops/test_refusals.py"], SKIM_TEST_LIBRARY=str(library))
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
