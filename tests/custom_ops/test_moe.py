"""LutMoe: each token through the experts that it was given, all weights packed."""

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from skim_export.graph.function import lut_functions
from skim_export.packed import PackedLinear
from skim_runtime.library import kernel_names
from skim_runtime.operators import LUT_MOE
from tests.random_packed import random_packed

from .models import TYPES, model, relative_error, session
from .test_matmul import ALL

BOUND = {np.float32: 1e-5, np.float16: 2e-3}
PREFIXES = LUT_MOE.prefixes


def moe_model(parts, experts, per_token, dtype=np.float32, accuracy_level=0, changes=None):
    own = {"experts": experts, "per_token": per_token, "gating": 0, "accuracy_level": accuracy_level}
    values = LUT_MOE.node_attributes(parts, **own) | (changes or {})
    node = helper.make_node("LutMoe", list(LUT_MOE.inputs), ["Y"], "moe", domain="ai.skim", **values)
    tensors = [
        numpy_helper.from_array(getattr(packed, name), prefix + name)
        for prefix, packed in zip(PREFIXES, parts, strict=True)
        for name in PackedLinear.TENSORS
    ]
    types = {"X": TYPES[np.dtype(dtype)], "experts": TensorProto.INT64, "shares": TYPES[np.dtype(dtype)]}
    inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in types.items()]
    return model([node], inputs, [helper.make_tensor_value_info("Y", types["X"], None)], tensors)


def mixture(rng, experts, inner, hidden, classes=ALL, scales=(False, False, False), entries=np.int8, bias=True):
    shapes = ((experts * inner, hidden), (experts * inner, hidden), (experts * hidden, inner))
    return [
        random_packed(rng, *shape, classes, entries, column_scale=scale, bias=bias)
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def batch(rng, shape, hidden, experts, per_token, dtype=np.float32):
    x = rng.normal(size=(*shape, hidden)).astype(dtype)
    chosen = rng.permuted(np.broadcast_to(np.arange(experts), (*shape, experts)), axis=-1)[..., :per_token]
    return x, np.ascontiguousarray(chosen), rng.uniform(0, 1, (*shape, per_token)).astype(dtype)


def swiglu(gate, up):
    return gate / (1 + np.exp(-gate)) * up


def clamped_swiglu(gate, up):
    gate = np.minimum(gate, 7)
    return gate / (1 + np.exp(-1.702 * gate)) * (np.clip(up, -7, 7) + 1)


def expected(parts, experts, x, chosen, shares, gated=swiglu):
    """Token by token, expert by expert."""
    weights = [packed.dequantize().reshape(experts, -1, packed.in_features).astype(np.float64) for packed in parts]
    biases = [(p.bias if p.bias.size else np.zeros(p.out_features)).reshape(experts, -1) for p in parts]
    y = np.zeros((*x.shape[:-1], biases[2].shape[1]))
    for place in np.ndindex(*x.shape[:-1]):
        for e, share in zip(chosen[place], shares[place], strict=True):
            g, u = (weights[i][e] @ x[place].astype(np.float64) + biases[i][e] for i in (0, 1))
            y[place] += float(share) * (weights[2][e] @ gated(g, u) + biases[2][e])
    return y


def run(s, x, chosen, shares):
    """Into a preallocated output full of NaN, so that an element that is not written shows."""
    y = np.full(x.shape, np.nan, x.dtype)
    binding = s.io_binding()
    for name, array in zip(LUT_MOE.first_inputs, (x, chosen, shares), strict=True):
        binding.bind_cpu_input(name, array)
    binding.bind_output("Y", "cpu", 0, TYPES[x.dtype], x.shape, y.ctypes.data)
    s.run_with_iobinding(binding)
    return y


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("scales", [(False, False, False), (True, False, True), (True, True, True)])
def test_against_numpy(kernel, scales, dtype):
    rng = np.random.default_rng(1)
    for experts, per_token, inner, hidden, entries in ((5, 2, 100, 200, np.int8), (7, 3, 33, 96, np.float16)):
        parts = mixture(rng, experts, inner, hidden, scales=scales, entries=entries)
        s = session(moe_model(parts, experts, per_token, dtype), threads=2)
        for tokens in (1, 3, 40, 300):
            inputs = batch(rng, (tokens,), hidden, experts, per_token, dtype)
            assert relative_error(run(s, *inputs), expected(parts, experts, *inputs)) < BOUND[dtype]


def test_experts_of_different_classes(kernel):
    """Where the rows of an expert begin in each class follows from the experts before it."""
    rng = np.random.default_rng(2)
    inner, hidden = 32, 64
    for classes in (ALL, [2], [20, 2, 20]):
        experts = len(classes)
        gate, up, down = (
            PackedLinear.concatenate(
                [random_packed(rng, *shape, [c, ALL[0]][: 1 + i % 2]) for i, c in enumerate(classes)]
            )
            for shape in ((inner, hidden), (inner, hidden), (hidden, inner))
        )
        inputs = batch(rng, (2 * experts,), hidden, experts, min(experts, 2))
        found = run(session(moe_model([gate, up, down], experts, min(experts, 2))), *inputs)
        assert relative_error(found, expected([gate, up, down], experts, *inputs)) < 1e-5


@pytest.mark.parametrize("scales", [(False, False, False), (True, True, True)])
def test_integer_arithmetic_gives_the_same_bits_everywhere(scales, monkeypatch):
    rng = np.random.default_rng(3)
    parts = mixture(rng, 6, 130, 320, scales=scales)
    proto = moe_model(parts, 6, 2, accuracy_level=4)
    for tokens in (1, 5, 260):
        inputs = batch(rng, (tokens,), 320, 6, 2)
        results = []
        for name in kernel_names():
            monkeypatch.setenv("SKIM_KERNEL", name)
            results += [run(session(proto, threads), *inputs) for threads in (1, 2)]
        assert relative_error(results[0], expected(parts, 6, *inputs)) < 2e-3
        assert len({result.tobytes() for result in results}) == 1


def test_more_pairs_than_a_block_has():
    rng = np.random.default_rng(4)
    parts = mixture(rng, 3, 32, 32, [2, 20])
    s = session(moe_model(parts, 3, 2, accuracy_level=4), threads=2)
    inputs = batch(rng, (2100,), 32, 3, 2)
    found = run(s, *inputs)
    assert relative_error(found, expected(parts, 3, *inputs)) < 2e-3
    alone = run(s, *(array[2099:] for array in inputs))  # what a token gets does not depend on the others
    np.testing.assert_array_equal(found[2099:], alone)


@pytest.mark.parametrize("level", [0, 4])
def test_gating_of_gpt_oss(kernel, level):
    """Gates and ups beyond the limits on either side."""
    rng = np.random.default_rng(9)
    parts = mixture(rng, 4, 64, 128)
    s = session(moe_model(parts, 4, 2, accuracy_level=level, changes={"gating": 1}), threads=2)
    for tokens in (1, 40):
        x, *others = batch(rng, (tokens,), 128, 4, 2)
        wanted = expected(parts, 4, 4 * x, *others, gated=clamped_swiglu)
        assert relative_error(wanted, expected(parts, 4, 4 * x, *others)) > 0.1
        assert relative_error(run(s, 4 * x, *others), wanted) < (2e-3 if level else 1e-5)


@pytest.mark.parametrize("chosen", [[[1, 1]], [[2, 0], [2, 1], [2, 0]]])
def test_an_expert_for_all_and_one_for_none(kernel, chosen):
    rng = np.random.default_rng(5)
    parts = mixture(rng, 4, 40, 64)
    chosen = np.array(chosen)
    x, _, shares = batch(rng, (len(chosen),), 64, 4, 2)
    found = run(session(moe_model(parts, 4, 2)), x, chosen, shares)
    assert relative_error(found, expected(parts, 4, x, chosen, shares)) < 1e-5


@pytest.mark.parametrize("shape", [(), (2, 3), (0,), (2, 0)])
def test_ranks(kernel, shape):
    rng = np.random.default_rng(6)
    parts = mixture(rng, 4, 20, 64)
    inputs = batch(rng, shape, 64, 4, 3)
    names = dict(zip(LUT_MOE.first_inputs, inputs, strict=True))
    y = session(moe_model(parts, 4, 3)).run(None, names)[0]
    assert y.shape == (*shape, 64)
    np.testing.assert_allclose(y, expected(parts, 4, *inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("entries", "gating"), [(np.int8, 0), (np.float16, 0), (np.int8, 1)])
def test_a_stock_runtime_runs_it_as_a_function(dtype, entries, gating):
    rng = np.random.default_rng(7)
    parts = mixture(rng, 5, 50, 96, scales=(True, False, True), entries=entries)
    proto = moe_model(parts, 5, 2, dtype, changes={"gating": gating})
    proto.functions.extend(lut_functions(ALL, entries, [LUT_MOE]))
    proto.opset_import[0].version = proto.functions[0].opset_import[0].version
    options = ort.SessionOptions()
    options.log_severity_level = 4
    stock = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for shape in ((3,), (2, 2), (0,)):
        inputs = batch(rng, shape, 96, 5, 2, dtype)
        y = stock.run(None, dict(zip(LUT_MOE.first_inputs, inputs, strict=True)))[0]
        assert y.shape == inputs[0].shape
        if y.size:
            gated = clamped_swiglu if gating else swiglu
            assert relative_error(y, expected(parts, 5, *inputs, gated=gated)) < BOUND[dtype]


def test_what_does_not_fit_is_refused():
    rng = np.random.default_rng(8)
    gate, up, down = mixture(rng, 4, 20, 64)
    with pytest.raises(Exception, match="LutMoe node 'moe': down_codebook must have"):
        session(moe_model([gate, up, replace(down, codebook=down.codebook[:-1])], 4, 2))
    for name in ("experts", "per_token"):
        with pytest.raises(Exception, match=f"LutMoe node 'moe': {name} must be 1..65536, got 0"):
            session(moe_model([gate, up, down], 4, 2, changes={name: 0}))
    with pytest.raises(Exception, match="LutMoe node 'moe': gate_rows_per_class must sum to N=60"):
        session(moe_model([gate, up, down], 4, 2, changes={"experts": 3}))
    with pytest.raises(Exception, match="LutMoe node 'moe': gating must be 0 or 1, got 2"):
        session(moe_model([gate, up, down], 4, 2, changes={"gating": 2}))
    s = session(moe_model([gate, up, down], 4, 2))
    x, chosen, shares = batch(rng, (3,), 64, 4, 2)

    def refused(message, **changes):
        with pytest.raises(Exception, match=f"LutMoe node 'moe': {message}"):
            s.run(None, {"X": x, "experts": chosen, "shares": shares, **changes})

    refused("the last dimension of X must be K=64", X=x[:, 1:])
    refused(r"experts must have shape \[3, 2\], got \[3, 1\]", experts=chosen[:, :1])
    refused(r"shares must have shape \[3, 2\], got \[2, 2\]", shares=shares[:2])
    refused("experts must be 0..3, got 4", experts=np.full_like(chosen, 4))
    refused("experts must be 0..3, got -1", experts=np.full_like(chosen, -1))
