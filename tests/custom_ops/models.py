"""One-node models around a packed linear, and sessions that run them with the operator library."""

import os

import numpy as np
import onnx
import onnxruntime as ort
from ml_dtypes import bfloat16
from onnx import TensorProto, helper, numpy_helper

from skim_export.packed import PackedLinear
from skim_runtime.library import library_path
from skim_runtime.operators import LUT_GATHER, LUT_MATMUL

# test_sanitizers.py runs these tests again with a library of its own.
LIBRARY = os.environ.get("SKIM_TEST_LIBRARY") or str(library_path())
TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(bfloat16): TensorProto.BFLOAT16,
}


def attributes(packed):
    return LUT_MATMUL.node_attributes([packed])


def initializers(packed):
    return [numpy_helper.from_array(getattr(packed, name), name) for name in PackedLinear.TENSORS]


def model(nodes, inputs, outputs, tensors):
    graph = helper.make_graph(nodes, "test", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.skim", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def matmul_model(packed, dtype=np.float32, x_shape=None, tensors=None, **changes):
    """`Y = LutMatMul(X, ...)`; `changes` replace attributes, None leaves one out."""
    values = {k: v for k, v in (attributes(packed) | changes).items() if v is not None}
    node = helper.make_node("LutMatMul", ["X", *PackedLinear.TENSORS], ["Y"], "layer", domain="ai.skim", **values)
    inputs = [helper.make_tensor_value_info("X", TYPES[np.dtype(dtype)], x_shape)]
    outputs = [helper.make_tensor_value_info("Y", TYPES[np.dtype(dtype)], None)]
    return model([node], inputs, outputs, initializers(packed) if tensors is None else tensors)


def gather_model(packed, dtype=np.float32, output_dtype=None, **changes):
    """`Y = LutGather(ids, ...)`."""
    values = LUT_GATHER.node_attributes([packed], dtype=TYPES[np.dtype(dtype)]) | changes
    node = helper.make_node("LutGather", ["ids", *PackedLinear.TENSORS], ["Y"], "embedding", domain="ai.skim", **values)
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, None)]
    outputs = [helper.make_tensor_value_info("Y", TYPES[np.dtype(output_dtype or dtype)], None)]
    return model([node], inputs, outputs, initializers(packed))


def session(proto: onnx.ModelProto, threads=1, library=LIBRARY, shared=None):
    """A session; `shared` has OrtValues that take the place of initializers."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # refused models are expected here
    options.register_custom_ops_library(str(library))
    for name, value in (shared or {}).items():
        options.add_initializer(name, value)
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(s: ort.InferenceSession, x, shape, dtype):
    """Run into a preallocated output full of NaN, so that an element that is not written shows."""
    y = np.full(shape, np.nan, dtype)
    binding = s.io_binding()
    name = s.get_inputs()[0].name
    if x.dtype == bfloat16:  # onnxruntime does not know numpy's
        value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(x.view(np.uint16), TensorProto.BFLOAT16)
        binding.bind_ortvalue_input(name, value)
    else:
        binding.bind_cpu_input(name, x)
    binding.bind_output("Y", "cpu", 0, TYPES[np.dtype(dtype)], shape, y.ctypes.data)
    s.run_with_iobinding(binding)
    return y


def relative_error(got, want):
    return np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want)
