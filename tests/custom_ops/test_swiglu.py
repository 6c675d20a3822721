"""LutSwiglu: silu(X G^T + g) * (X U^T + u) with both weights packed."""

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from skim_export.graph.function import lut_functions
from skim_export.packed import PackedLinear
from skim_runtime.library import kernel_names
from skim_runtime.operators import LUT_SWIGLU
from tests.random_packed import random_packed

from .models import TYPES, model, relative_error, run, session
from .test_matmul import ALL

BOUND = {np.float32: 1e-5, np.float16: 2e-3}


def swiglu_model(gate, up, dtype=np.float32, accuracy_level=0):
    parts = {"gate_": gate, "up_": up}
    values = LUT_SWIGLU.node_attributes([gate, up], accuracy_level=accuracy_level)
    names = [prefix + name for prefix in parts for name in PackedLinear.TENSORS]
    node = helper.make_node("LutSwiglu", ["X", *names], ["Y"], "mlp", domain="ai.skim", **values)
    tensors = [
        numpy_helper.from_array(getattr(packed, name), prefix + name)
        for prefix, packed in parts.items()
        for name in PackedLinear.TENSORS
    ]
    inputs = [helper.make_tensor_value_info("X", TYPES[np.dtype(dtype)], None)]
    outputs = [helper.make_tensor_value_info("Y", TYPES[np.dtype(dtype)], None)]
    return model([node], inputs, outputs, tensors)


def pair(rng, rows, columns, scales=(False, False), entries=np.int8, bias=True):
    return [random_packed(rng, rows, columns, ALL, entries, column_scale=scale, bias=bias) for scale in scales]


def expected(gate, up, x):
    x = x.astype(np.float64)
    g, u = (x @ p.dequantize().T + (p.bias if p.bias.size else 0) for p in (gate, up))
    return g / (1 + np.exp(-g)) * u


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("scales", [(False, False), (True, False), (True, True)])
def test_against_numpy(kernel, scales, dtype):
    rng = np.random.default_rng(1)
    for rows, columns, entries in ((100, 200, np.int8), (33, 576, np.float16)):
        gate, up = pair(rng, rows, columns, scales, entries)
        s = session(swiglu_model(gate, up, dtype))
        for m in (1, 3, 40, 300):
            x = rng.normal(size=(m, columns)).astype(dtype)
            assert relative_error(run(s, x, (m, rows), dtype), expected(gate, up, x)) < BOUND[dtype]


@pytest.mark.parametrize("scales", [(False, False), (True, True)])
def test_integer_arithmetic_gives_the_same_bits_everywhere(scales, monkeypatch):
    rng = np.random.default_rng(2)
    gate, up = pair(rng, 130, 320, scales)
    proto = swiglu_model(gate, up, accuracy_level=4)
    for m in (1, 5, 260):
        x = rng.normal(size=(m, 320)).astype(np.float32)
        results = []
        for name in kernel_names():
            monkeypatch.setenv("SKIM_KERNEL", name)
            results += [run(session(proto, threads), x, (m, 130), np.float32) for threads in (1, 2)]
        assert relative_error(results[0], expected(gate, up, x)) < 2e-3
        assert len({result.tobytes() for result in results}) == 1


@pytest.mark.parametrize("shape", [(64,), (2, 3, 64), (0, 64)])
def test_ranks(kernel, shape):
    rng = np.random.default_rng(3)
    gate, up = pair(rng, 20, 64)
    x = rng.normal(size=shape).astype(np.float32)
    y = session(swiglu_model(gate, up)).run(None, {"X": x})[0]
    assert y.shape == (*shape[:-1], 20)
    np.testing.assert_allclose(y, expected(gate, up, x), rtol=1e-4, atol=1e-4)


def test_a_stock_runtime_runs_it_as_a_function():
    rng = np.random.default_rng(4)
    gate, up = pair(rng, 50, 96, (True, False))
    proto = swiglu_model(gate, up)
    proto.functions.extend(lut_functions(ALL, np.int8))
    proto.opset_import[0].version = proto.functions[0].opset_import[0].version
    options = ort.SessionOptions()
    options.log_severity_level = 4
    stock = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = rng.normal(size=(3, 96)).astype(np.float32)
    assert relative_error(stock.run(None, {"X": x})[0], expected(gate, up, x)) < 1e-5


def test_damaged_weights_are_refused():
    gate, up = pair(np.random.default_rng(5), 50, 96)
    short = replace(up, codebook=up.codebook[:-1])
    with pytest.raises(Exception, match="LutSwiglu node 'mlp': up_codebook must have"):
        session(swiglu_model(gate, short))
    narrow = random_packed(np.random.default_rng(6), 50, 64, ALL)
    with pytest.raises(Exception, match="LutSwiglu node 'mlp': up_codes must have"):
        session(swiglu_model(gate, narrow))
    s = session(swiglu_model(gate, up))
    with pytest.raises(Exception, match="LutSwiglu node 'mlp': the last dimension of X must be K=96"):
        s.run(None, {"X": np.ones((2, 95), np.float32)})
