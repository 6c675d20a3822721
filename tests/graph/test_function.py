"""The model-local functions mean what docs/format.md says, in a stock onnxruntime."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from skim_export.graph.function import OPSET, lut_functions
from skim_export.packed import CLASSES
from skim_runtime.operators import DOMAIN, OPERATORS, TENSORS

from ..random_packed import random_packed


def one_node_model(op, packed, activation, classes, shape, **attributes):
    """A model of one LutMatMul or LutGather with its weights as initializers."""
    name = "X" if op == "LutMatMul" else "ids"
    values = OPERATORS[op].node_attributes([packed], **attributes)
    node = helper.make_node(op, [name, *TENSORS], ["Y"], domain=DOMAIN, **values)
    weights = [numpy_helper.from_array(getattr(packed, t), t) for t in TENSORS]
    output = TensorProto.FLOAT16 if activation == TensorProto.FLOAT16 else TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, activation, shape)],
        [helper.make_tensor_value_info("Y", output, [*shape[:-1], "N"] if op == "LutMatMul" else [*shape, "K"])],
        weights,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        functions=lut_functions(classes, packed.codebook.dtype),
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def test_functions_have_the_inputs_and_attributes_of_the_schema():
    functions = {function.name: function for function in lut_functions([2], np.int8)}
    assert functions.keys() == OPERATORS.keys()
    for name, operator in OPERATORS.items():
        assert functions[name].domain == DOMAIN
        assert list(functions[name].input) == list(operator.inputs)
        assert sorted(functions[name].attribute) == sorted(attribute.name for attribute in operator.attributes)


CASES = [[b] for b in range(CLASSES)] + [[1, 2, 3], [0, 4, 5, 6, 7, 15], [2, 20], list(range(CLASSES))]


@pytest.mark.parametrize("entries", [np.int8, np.float16])
@pytest.mark.parametrize("classes", CASES, ids=str)
@pytest.mark.parametrize("shape", [(33, 31), (17, 576), (40, 1000)])
def test_lut_matmul_function(classes, entries, shape):
    rng = np.random.default_rng(5)
    packed = random_packed(rng, *shape, classes, entries, column_scale=len(classes) > 1, bias=len(classes) > 2)
    x = rng.normal(size=(2, 3, shape[1])).astype(np.float32)
    session = ort.InferenceSession(one_node_model("LutMatMul", packed, TensorProto.FLOAT, classes, x.shape))
    got = session.run(None, {"X": x})[0]
    want = x.astype(np.float64) @ packed.dequantize().astype(np.float64).T
    if packed.bias.size:
        want = want + packed.bias
    assert np.linalg.norm(got - want) <= 1e-6 * np.linalg.norm(want)


def test_classes_of_other_layers_do_no_harm():
    """One function serves all layers: classes that this layer lacks take part with no rows."""
    rng = np.random.default_rng(6)
    packed = random_packed(rng, 24, 96, [2], np.int8)
    x = rng.normal(size=(1, 96)).astype(np.float32)
    session = ort.InferenceSession(one_node_model("LutMatMul", packed, TensorProto.FLOAT, range(CLASSES), x.shape))
    want = x.astype(np.float64) @ packed.dequantize().astype(np.float64).T
    assert np.linalg.norm(session.run(None, {"X": x})[0] - want) <= 1e-6 * np.linalg.norm(want)


def test_float16_activations_accumulate_in_float32():
    rng = np.random.default_rng(7)
    packed = random_packed(rng, 40, 4096, [2, 3], np.int8, column_scale=True)
    x = rng.normal(size=(3, 4096)).astype(np.float16)
    session = ort.InferenceSession(one_node_model("LutMatMul", packed, TensorProto.FLOAT16, [2, 3], x.shape))
    got = session.run(None, {"X": x})[0]
    want = x.astype(np.float64) @ packed.dequantize().astype(np.float64).T
    assert got.dtype == np.float16
    assert np.linalg.norm(got - want) <= 1e-3 * np.linalg.norm(want)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_lut_gather_function(dtype):
    rng = np.random.default_rng(8)
    packed = random_packed(rng, 50, 200, [2, 4, 15, 19], np.int8, column_scale=True)
    ids = rng.integers(0, 50, (2, 7))
    model = one_node_model("LutGather", packed, TensorProto.INT64, [2, 4, 15, 19], ids.shape, dtype=dtype)
    model = onnx.load_from_string(model)
    model.graph.output[0].type.tensor_type.elem_type = dtype
    got = ort.InferenceSession(model.SerializeToString()).run(None, {"ids": ids})[0]
    want = packed.dequantize()[ids]
    np.testing.assert_array_equal(got, want.astype(got.dtype))
