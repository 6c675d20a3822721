"""Each operator in Relax: against numpy in float64, and against onnxruntime."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from skim_export.packed import PackedLinear
from skim_runtime.errors import UserError
from skim_runtime.operators import LUT_GATHER, LUT_MATMUL, LUT_SWIGLU

from ...random_packed import random_packed
from ...tools import require_packages

require_packages("tvm")
# ruff: noqa: E402

from relax_model.importer import import_model

from skim_export.bundle.target import load_cpu_target

from .running import (
    FLOAT,
    INT32,
    INT64,
    TARGET,
    RelaxGraph,
    graph_model,
    packed_tensors,
    relative_error,
    run_onnxruntime,
)

RNG = np.random.default_rng(0)
# Row classes, codebook entries and accuracy level of products.
PRODUCTS = {
    "mixed": ([1, 3, 8, 15], np.int8, 0),
    "mixed, integers": ([1, 3, 8, 15], np.int8, 4),
    "mixed, float16": ([1, 3, 8, 15], np.float16, 4),
    "one class": ([2], np.int8, 0),
    "affine, integers": ([15], np.int8, 4),
}
QUICK = ("mixed, integers", "one class")


def dense(packed):
    return packed.dequantize().astype(np.float64)


def product(packed, x):
    y = x.astype(np.float64) @ dense(packed).T
    return y + packed.bias if packed.bias.size else y


@pytest.mark.parametrize(
    ("classes", "entries", "accuracy_level"),
    [
        pytest.param(*product, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, product in PRODUCTS.items()
    ],
)
def test_lut_matmul(tmp_path, classes, entries, accuracy_level):
    """Matrices with and without full superblocks and with short last ones, in one graph."""
    many = len(classes) > 1
    shapes = [(33, 31), (65, 256), (50, 1000)]
    packed = [random_packed(RNG, *shape, classes, entries, column_scale=many, bias=many) for shape in shapes]
    nodes, inputs, outputs, tensors = [], {}, {}, {}
    for i, linear in enumerate(packed):
        own = packed_tensors(linear, f"{i}.")
        attributes = LUT_MATMUL.node_attributes([linear], accuracy_level=accuracy_level)
        nodes.append(helper.make_node("LutMatMul", [f"X{i}", *own], [f"Y{i}"], domain="ai.skim", **attributes))
        inputs[f"X{i}"] = (FLOAT, [1, "M", linear.in_features])
        outputs[f"Y{i}"] = (FLOAT, [1, "M", linear.out_features])
        tensors |= own
    model = graph_model(nodes, inputs, outputs, tensors)
    graph = RelaxGraph(model, tmp_path)
    for tokens in (1, 5):
        x = [RNG.normal(size=(1, tokens, linear.in_features)).astype(np.float32) for linear in packed]
        for y, want, linear, given in zip(graph(*x), run_onnxruntime(model, *x), packed, x, strict=True):
            assert relative_error(y, want) < 1e-5
            assert relative_error(y, product(linear, given)) < (1e-3 if accuracy_level else 1e-5)


def test_lut_swiglu(tmp_path):
    rows, columns = 40, 96
    gate = random_packed(RNG, rows, columns, [1, 2], bias=True)
    up = random_packed(RNG, rows, columns, [3, 15], column_scale=True)
    tensors = packed_tensors(gate, "gate_") | packed_tensors(up, "up_")
    attributes = LUT_SWIGLU.node_attributes([gate, up])
    node = helper.make_node("LutSwiglu", ["X", *tensors], ["Y"], domain="ai.skim", **attributes)
    model = graph_model([node], {"X": (FLOAT, [1, "M", columns])}, {"Y": (FLOAT, [1, "M", rows])}, tensors)
    x = RNG.normal(size=(1, 3, columns)).astype(np.float32)
    (y,) = RelaxGraph(model, tmp_path)(x)
    g = product(gate, x)
    assert relative_error(y, g / (1 + np.exp(-g)) * product(up, x)) < 1e-5
    assert relative_error(y, run_onnxruntime(model, x)[0]) < 1e-5


@pytest.mark.parametrize("entries", [np.int8, np.float16])
def test_lut_gather(tmp_path, entries):
    rows, columns = 50, 200
    packed = random_packed(RNG, rows, columns, [0, 2, 15], entries, column_scale=True)
    attributes = LUT_GATHER.node_attributes([packed], dtype=1)
    node = helper.make_node("LutGather", ["ids", *PackedLinear.TENSORS], ["Y"], domain="ai.skim", **attributes)
    inputs, outputs = {"ids": (INT64, [1, "M"])}, {"Y": (FLOAT, [1, "M", columns])}
    ids = RNG.permutation(rows)[None]
    (y,) = RelaxGraph(graph_model([node], inputs, outputs, packed_tensors(packed)), tmp_path)(ids)
    assert relative_error(y, dense(packed)[ids]) < 1e-6


@pytest.mark.parametrize("columns", [64, 72, 31])
def test_norms(tmp_path, columns):
    """Both norms at once: the first one's output is the second one's skip connection."""
    nodes = [
        helper.make_node("SimplifiedLayerNormalization", ["x", "w"], ["a"], axis=-1, epsilon=1e-5, stash_type=1),
        helper.make_node(
            "SkipSimplifiedLayerNormalization",
            ["x", "a", "v"],
            ["y", "", "", "total"],
            domain="com.microsoft",
            epsilon=1e-6,
        ),
    ]
    shape = [1, "M", columns]
    tensors = {name: RNG.uniform(0.5, 1.5, columns).astype(np.float32) for name in "wv"}
    outputs = dict.fromkeys(("a", "y", "total"), (FLOAT, shape))
    model = graph_model(nodes, {"x": (FLOAT, shape)}, outputs, tensors)
    graph = RelaxGraph(model, tmp_path)
    for tokens in (1, 4):
        x = RNG.normal(size=(1, tokens, columns)).astype(np.float32)
        for got, want in zip(graph(x), run_onnxruntime(model, x), strict=True):
            assert relative_error(got, want) < 1e-6


def test_norms_of_heads(tmp_path):
    """Queries, keys and values taken apart, and each head of the former normed."""
    tensors = {
        "sizes": np.array([96, 32, 32]),
        "heads": np.array([0, -1, 32]),
        "whole": np.array([0, -1, 96]),
        "w": RNG.uniform(0.5, 1.5, 32).astype(np.float32),
    }
    nodes = [
        helper.make_node("Split", ["x", "sizes"], ["q", "k", "v"], axis=-1),
        helper.make_node("Reshape", ["q", "heads"], ["q_heads"]),
        helper.make_node("SimplifiedLayerNormalization", ["q_heads", "w"], ["q_norm"], axis=-1, epsilon=1e-5),
        helper.make_node("Reshape", ["q_norm", "whole"], ["y"]),
    ]
    outputs = {"y": (FLOAT, [1, "M", 96]), "k": (FLOAT, [1, "M", 32]), "v": (FLOAT, [1, "M", 32])}
    model = graph_model(nodes, {"x": (FLOAT, [1, "M", 160])}, outputs, tensors)
    graph = RelaxGraph(model, tmp_path)
    for tokens in (1, 4):
        x = RNG.normal(size=(1, tokens, 160)).astype(np.float32)
        for got, want in zip(graph(x), run_onnxruntime(model, x), strict=True):
            assert relative_error(got, want) < 1e-6


def attention_model(heads, kv_heads, head_size, rotary, *, apart=False, **attributes):
    """GroupQueryAttention behind the subgraph that turns a mask into lengths, as in our decoders.

    Without rotary channels there are no tables; `apart`, it reads queries, keys and values from three inputs.
    """
    sizes = [heads * head_size, kv_heads * head_size, kv_heads * head_size]
    nodes = [helper.make_node("Split", ["qkv", "sizes"], ["q", "k", "v"], axis=-1)] if apart else []
    nodes += [
        helper.make_node("ReduceSum", ["attention_mask", "one_axis"], ["lengths"], keepdims=0),
        helper.make_node("Sub", ["lengths", "one_axis"], ["last"]),
        helper.make_node("Cast", ["last"], ["last32"], to=INT32),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "one"], ["total"], axis=0),
        helper.make_node("Cast", ["total"], ["total32"], to=INT32),
        helper.make_node(
            "GroupQueryAttention",
            [
                *(["q", "k", "v"] if apart else ["qkv", "", ""]),
                *["past_key", "past_value", "last32", "total32"],
                *(["cos", "sin"] if rotary else []),
            ],
            ["y", "present_key", "present_value"],
            domain="com.microsoft",
            num_heads=heads,
            kv_num_heads=kv_heads,
            do_rotary=int(rotary > 0),
            **attributes,
        ),
    ]
    angles = RNG.uniform(0, 2 * np.pi, (64, rotary // 2))
    tensors = {
        "one_axis": np.array([1]),
        "one": np.array(1),
        "sizes": np.array(sizes),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
    }
    cache = (FLOAT, [1, kv_heads, "capacity", head_size])
    inputs = {
        "attention_mask": (INT64, [1, "total"]),
        "qkv": (FLOAT, [1, "tokens", sum(sizes)]),
        "past_key": cache,
        "past_value": cache,
    }
    outputs = {"y": (FLOAT, [1, "tokens", heads * head_size]), "present_key": cache, "present_value": cache}
    return graph_model(nodes, inputs, outputs, tensors)


ATTENTION = {
    "grouped": (9, 3, 16, 16, {}),
    "one head each": (2, 2, 32, 32, {"scale": 0.3}),
    "window": (4, 2, 16, 16, {"local_window_size": 5}),
    "softcap": (4, 1, 16, 16, {"softcap": 2.0, "scale": 1.0}),
    "partial rotary": (4, 2, 32, 16, {}),
    "interleaved, apart": (4, 1, 16, 16, {"rotary_interleaved": 1, "apart": True}),
    "no rotary": (4, 2, 16, 0, {}),
}


@pytest.mark.parametrize("case", ATTENTION.values(), ids=ATTENTION)
def test_group_query_attention(tmp_path, case):
    """A prompt longer than a block of keys, then tokens one by one and a few at once, in a cache with room to spare."""
    heads, kv_heads, head_size, rotary, attributes = case
    model = attention_model(heads, kv_heads, head_size, rotary, **attributes)
    graph = RelaxGraph(model, tmp_path)
    cache = [np.full((1, kv_heads, 64, head_size), np.nan, np.float32) for _ in range(2)]
    past = [array[:, :, :0] for array in cache]
    total = 0
    for tokens in (37, 1, 1, 7, 1):
        total += tokens
        qkv = RNG.normal(size=(1, tokens, (heads + 2 * kv_heads) * head_size)).astype(np.float32)
        mask = np.ones((1, total), np.int64)
        want, *past = run_onnxruntime(model, mask, qkv, *past)
        got, *cache = graph(mask, qkv, *cache)
        assert relative_error(got, want) < 1e-5
        for have, expected in zip(cache, past, strict=True):
            assert relative_error(have[:, :, :total], expected) < 1e-6
            assert np.isnan(have[:, :, total:]).all()


RMS = {"op_type": "SimplifiedLayerNormalization", "inputs": ["x", "w"], "outputs": ["y"]}
SKIP = {
    "op_type": "SkipSimplifiedLayerNormalization",
    "inputs": ["x", "x", "w"],
    "outputs": ["y"],
    "domain": "com.microsoft",
}
REFUSALS = {
    "operator": ({"op_type": "Sparkle", "inputs": ["x"], "outputs": ["y"], "domain": "com.example"}, "not supported"),
    "several outputs": ({"op_type": "TopK", "inputs": ["x", "w"], "outputs": ["y", "places"]}, "not supported"),
    "standard operator": ({"op_type": "Sparkle", "inputs": ["x"], "outputs": ["y"]}, "not supported"),
    "value of an attribute": (RMS | {"axis": 1}, "axis must be -1, got 1"),
    "attribute": (SKIP | {"shine": 3}, "the attribute shine is not supported"),
    "input": (SKIP | {"inputs": ["x", "x", "w", "w"]}, "input 3, 'w', is not supported"),
    "output": (SKIP | {"outputs": ["y", "mean"]}, "output 1, 'mean', is not supported"),
    "type of an input": (RMS | {"inputs": ["half", "w"]}, r"input 0 must be float32 \[1, tokens, channels\]"),
}


@pytest.mark.parametrize(("node", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_not_supported_is_refused_in_one_line(tmp_path, node, message):
    proto = helper.make_node(name="the node", **node)
    inputs = {"x": (FLOAT, [1, "M", 64]), "half": (TensorProto.FLOAT16, [1, "M", 64])}
    model = graph_model([proto], inputs, {"y": (FLOAT, [1, "M", 64])}, {"w": np.ones(64, np.float32)})
    with pytest.raises(UserError, match=f"{node['op_type']} 'the node': .*{message}") as error:
        import_model(model, tmp_path, {}, ["y"], load_cpu_target(TARGET))
    assert "\n" not in str(error.value)
