"""What is read of an ONNX file without the package onnx, against what that package says."""

import onnx
import pytest
from onnx import helper, numpy_helper

from skim_runtime.onnx_file import OnnxGraph

INT, INTS = onnx.AttributeProto.INT, onnx.AttributeProto.INTS


def described(node):
    """What is read of a node; attributes of other types by name and type alone."""
    attributes = [(a.name, a.type, a.i if a.type == INT else list(a.ints)) for a in node.attribute]
    return node.domain, node.op_type, node.name, list(node.input), list(node.output), attributes


@pytest.mark.parametrize("exported", ["fp32", "fp16", "packed", "packed_mistral"])
def test_a_graph_is_what_onnx_says(request, exported):
    file = request.getfixturevalue(exported) / "model.onnx"
    graph = onnx.load(file).graph
    read = OnnxGraph.read(file)
    assert [described(node) for node in read.nodes] == [described(node) for node in graph.node]
    assert read.outputs == [output.name for output in graph.output]
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {t.name: (t.dtype.name, t.size, t.nbytes) for t in read.initializers.values()}
    assert found == {name: (array.dtype.name, array.size, array.nbytes) for name, array in arrays.items()}


def test_every_element_type_has_its_name_and_size(tmp_path):
    """Without external data only the type says how many bytes a tensor has."""
    types = [
        number for _, number in onnx.TensorProto.DataType.items() if 1 <= number <= 16 and number not in (8, 14, 15)
    ]
    tensors = [helper.make_tensor(str(number), number, [3, 5], [0] * 15) for number in types]
    node = helper.make_node("Identity", ["1"], ["y"])
    outputs = [helper.make_tensor_value_info("y", 1, None)]
    onnx.save(helper.make_model(helper.make_graph([node], "types", [], outputs, tensors)), tmp_path / "model.onnx")
    read = OnnxGraph.read(tmp_path / "model.onnx").initializers
    assert len(read) == len(types)
    for number in types:
        dtype = helper.tensor_dtype_to_np_dtype(number)
        tensor = read[str(number)]
        assert (tensor.dtype.name, tensor.size, tensor.nbytes) == (dtype.name, 15, 15 * dtype.itemsize)
