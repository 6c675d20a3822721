"""Small graphs, and how they run in onnxruntime and in Relax."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import tvm
import tvm_ffi
from onnx import TensorProto, helper, numpy_helper
from relax_model.compile import build_library
from relax_model.importer import ENTRY, import_model
from relax_model.parameters import Tensors
from tvm import relax

from skim_export.bundle.target import load_cpu_target
from skim_export.packed import PackedLinear
from skim_runtime.library import library_path

TARGET = "x86-avx2"
OPSETS = [helper.make_opsetid(*domain) for domain in (("", 22), ("com.microsoft", 1), ("ai.skim", 1))]
FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


def packed_tensors(packed, prefix=""):
    return {f"{prefix}{name}": getattr(packed, name) for name in PackedLinear.TENSORS}


def graph_model(nodes, inputs, outputs, tensors):
    """A model of `nodes`; `inputs` and `outputs` are (type, shape) by name, `tensors` its initializers."""
    values = [[helper.make_tensor_value_info(n, *v) for n, v in named.items()] for named in (inputs, outputs)]
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "test", *values, initializers)
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=10)


class RelaxGraph:
    """A compiled model; calls take the graph's inputs and return its outputs."""

    def __init__(self, model, directory: Path):
        self._outputs = [value.name for value in model.graph.output]
        target = load_cpu_target(TARGET)
        imported = import_model(model, directory, {}, self._outputs, target)
        library = directory / "graph.so"
        build_library(imported, target, library)
        self._call = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())[ENTRY]
        tensors = Tensors(model, directory)
        self._parameters = [tvm_ffi.from_dlpack(tensors.derive(parameter)) for parameter in imported.parameters]

    def __call__(self, *inputs):
        results = self._call(*[tvm.runtime.tensor(array) for array in inputs], *self._parameters)
        return [result.numpy() for result in results]


def run_onnxruntime(model, *inputs):
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([value.name for value in session.get_inputs()], inputs, strict=True)))


def relative_error(got, want):
    return np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want)
