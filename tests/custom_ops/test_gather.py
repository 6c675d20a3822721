"""LutGather: rows of the packed tensors, also of those that a LutMatMul shares."""

import numpy as np
import onnx
import pytest
from onnx import helper

from skim_export.packed import CLASSES, PackedLinear
from skim_runtime.operators import LUT_GATHER
from tests.random_packed import random_packed

from .models import TYPES, attributes, gather_model, initializers, model, relative_error, run, session

BOUND = {np.float32: 1e-6, np.float16: 1e-3}
ALL = list(range(CLASSES))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("entries", [np.int8, np.float16])
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 64, 192, 576, 1000, 1536])
def test_rows(kernel, columns, entries, dtype):
    rng = np.random.default_rng(columns)
    packed = random_packed(rng, 100, columns, ALL, entries, column_scale=True)
    ids = rng.permutation(100)[None, :]
    got = run(session(gather_model(packed, dtype)), ids, (1, 100, columns), dtype)
    assert relative_error(got, packed.dequantize()[ids]) < BOUND[dtype]


@pytest.mark.parametrize("row_class", ALL)
def test_rows_of_one_class_without_column_scale(kernel, row_class):
    rng = np.random.default_rng(row_class)
    packed = random_packed(rng, 9, 300, [row_class])
    ids = np.array([8, 0, 0, 3])
    got = run(session(gather_model(packed)), ids, (4, 300), np.float32)
    assert relative_error(got, packed.dequantize()[ids]) < 1e-6


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 1, 2)])
def test_shapes_of_ids(kernel, shape):
    rng = np.random.default_rng(1)
    packed = random_packed(rng, 50, 33, [2, 15])
    ids = rng.integers(0, 50, shape)
    y = session(gather_model(packed)).run(None, {"ids": ids})[0]
    assert y.shape == (*shape, 33)
    np.testing.assert_allclose(y, packed.dequantize()[ids], rtol=1e-6)


def test_many_rows_on_several_threads(kernel):
    rng = np.random.default_rng(2)
    packed = random_packed(rng, 500, 1000, ALL, column_scale=True)
    ids = rng.integers(0, 500, 300)
    one, three = (run(session(gather_model(packed), t), ids, (300, 1000), np.float32) for t in (1, 3))
    np.testing.assert_array_equal(one, three)
    assert relative_error(one, packed.dequantize()[ids]) < 1e-6


@pytest.mark.parametrize("bad", [-1, 50, 2**40, -(2**40)])
def test_ids_out_of_range_are_refused(kernel, bad):
    packed = random_packed(np.random.default_rng(3), 50, 33, [2])
    s = session(gather_model(packed))
    with pytest.raises(Exception, match=rf"LutGather node 'embedding': ids must be 0\.\.49, got {bad}"):
        s.run(None, {"ids": np.array([3, bad])})


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_tied_embedding(kernel, dtype):
    """LutGather and LutMatMul read the same initializers; the type between them is inferred from dtype."""
    rng = np.random.default_rng(4)
    packed = random_packed(rng, 100, 200, ALL, column_scale=True)
    nodes = [
        helper.make_node(
            "LutGather",
            ["ids", *PackedLinear.TENSORS],
            ["E"],
            "embedding",
            domain="ai.skim",
            **LUT_GATHER.node_attributes([packed], dtype=TYPES[np.dtype(dtype)]),
        ),
        helper.make_node(
            "LutMatMul", ["E", *PackedLinear.TENSORS], ["Y"], "head", domain="ai.skim", **attributes(packed)
        ),
    ]
    ids_info = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["batch", "tokens"])
    y_info = helper.make_tensor_value_info("Y", TYPES[np.dtype(dtype)], None)
    s = session(model(nodes, [ids_info], [y_info], initializers(packed)))
    assert s.get_outputs()[0].shape == ["batch", "tokens", 100]
    ids = rng.integers(0, 100, (2, 3))
    weight = packed.dequantize().astype(np.float64)
    bound = {np.float32: 1e-5, np.float16: 2e-3}[dtype]
    assert relative_error(run(s, ids, (2, 3, 100), dtype), weight[ids] @ weight.T) < bound


def test_a_dtype_that_the_model_contradicts_is_refused():
    packed = random_packed(np.random.default_rng(5), 50, 33, [2])
    s = session(gather_model(packed, np.float32, output_dtype=np.float16))
    with pytest.raises(Exception, match="the model declares another type for the output than dtype says"):
        s.run(None, {"ids": np.array([1])})


@pytest.mark.parametrize("dtype", [11, 16])  # 16 is for GPUs
def test_an_unknown_dtype_is_refused(dtype):
    proto = gather_model(random_packed(np.random.default_rng(6), 50, 33, [2]))
    next(a for a in proto.graph.node[0].attribute if a.name == "dtype").i = dtype
    with pytest.raises(Exception, match=rf"dtype must be 1 \(float32\) or 10 \(float16\), got {dtype}"):
        session(proto)
