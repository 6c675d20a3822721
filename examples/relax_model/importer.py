"""From an ONNX decoder to a Relax module.

Operators with a converter in `converters` become calls of TIR functions; for the operators of standard ONNX we ask the
converters of TVM's own importer, whose table is keyed on the operator's name alone and so cannot take ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import onnx
from tvm import ir, relax, tirx
from tvm.relax.frontend.onnx import onnx_frontend

from relax_model.converters import CONVERTERS
from relax_model.node import Node
from relax_model.operands import kernels_for, packed_operands
from relax_model.parameters import Parameter, Parameters, Tensors
from skim_export.bundle.target import CpuTarget
from skim_runtime.errors import UserError
from skim_runtime.operators import DOMAIN

__all__ = ["ENTRY", "Imported", "import_model"]

ENTRY = "main"  # the function of the module that computes the graph
STANDARD: Mapping[str, Any] = onnx_frontend._get_convert_map()


@dataclass(frozen=True)
class Imported:
    """A model in Relax.

    Attributes:
        module: its `ENTRY` takes the graph's inputs, then the parameters.
        parameters: these, in their order.
        kernels: object file with the kernels that it calls.
    """

    module: ir.IRModule
    parameters: list[Parameter]
    kernels: bytes


def import_model(
    model: onnx.ModelProto,
    directory: Path,
    dimensions: Mapping[str, int],
    outputs: Sequence[str],
    target: CpuTarget,
) -> Imported:
    """Convert the graph of an ONNX model.

    Args:
        model: the model, without its external data.
        directory: where its external data lies.
        dimensions: named sizes of inputs that are known; the others stay symbolic.
        outputs: the graph's outputs that are wanted.
        target: what the kernels are compiled for.

    Raises:
        UserError: an operator, or the way it is used, is not supported, or the target's file is wrong.
        PackedFormatError: packed weights violate their format.
    """
    for node in model.graph.node:
        _check_supported(node)
    return _Importer(model, directory, dimensions, target).run(outputs)


class _Importer:
    def __init__(
        self, model: onnx.ModelProto, directory: Path, dimensions: Mapping[str, int], target: CpuTarget
    ) -> None:
        self.graph = model.graph
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self.parameters = Parameters(Tensors(model, directory))
        self.builder = relax.BlockBuilder()
        self.sizes: dict[str, Any] = dict(dimensions)
        self.values: dict[str, Any] = {}
        # What kernels there are is known before the module is built, which calls them by name.
        packed = [node for node in self.graph.node if node.domain == DOMAIN]
        self.operands = {node.output[0]: packed_operands(node, self.parameters) for node in packed}
        self.kernels = kernels_for(chain.from_iterable(self.operands.values()), target)

    def run(self, outputs: Sequence[str]) -> Imported:
        inputs = [self.input(value) for value in self.graph.input]
        with self.builder.function(ENTRY, inputs):
            with self.builder.dataflow():
                for proto in self.graph.node:
                    self.convert(proto)
                result = self.builder.emit_output(relax.Tuple([self.values[name] for name in outputs]))
            self.builder.emit_func_output(result)
        module = self.builder.get()
        graph = module[ENTRY]
        variables = [*graph.params, *self.parameters.variables.values()]
        module[ENTRY] = relax.Function(variables, graph.body, graph.ret_ty, graph.is_pure, graph.attrs)
        return Imported(module, list(self.parameters.variables), self.kernels.object_file)

    def input(self, value: onnx.ValueInfoProto) -> relax.Var:
        tensor = value.type.tensor_type
        shape = [self.size(dim) for dim in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        self.values[value.name] = relax.Var(value.name, relax.TensorType(shape, dtype))
        return self.values[value.name]

    def size(self, dim: onnx.TensorShapeProto.Dimension) -> Any:
        if not dim.dim_param:
            return dim.dim_value
        return self.sizes.setdefault(dim.dim_param, tirx.Var(dim.dim_param, "int64"))

    def convert(self, proto: onnx.NodeProto) -> None:
        if converter := CONVERTERS.get((proto.domain, proto.op_type)):
            operands = self.operands.get(proto.output[0], [])
            node = Node(proto, self.values, self.parameters, self.builder, operands, self.kernels)
            outputs = converter(node)
            node.check(outputs)
        else:
            outputs = self.standard(proto)
        self.values.update({name: value for name, value in zip(proto.output, outputs, strict=False) if name})

    def standard(self, proto: onnx.NodeProto) -> list[relax.Expr]:
        """Convert an operator of standard ONNX."""
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
        attributes["tvm_custom"] = {"name": proto.name, "num_outputs": len(proto.output)}
        inputs = onnx_frontend.onnx_input([self.constant(name) if name else None for name in proto.input])
        convert = STANDARD[proto.op_type].get_converter(self.opset)
        result = self.builder.normalize(convert(self.builder, inputs, attributes, [self.values, {}]))
        if len(proto.output) == 1:
            return [result]
        return [self.builder.emit(relax.TupleGetItem(result, i)) for i in range(len(proto.output))]

    def constant(self, name: str) -> Any:
        """The value of an operator's input, an initializer as a constant."""
        if name not in self.parameters.tensors:
            return self.values[name]
        array = self.parameters.tensors[name]
        return relax.const(array, array.dtype.name)  # without a type it makes int32 of int64


def _check_supported(node: onnx.NodeProto) -> None:
    one_or_split = len(node.output) == 1 or node.op_type == "Split"
    standard = node.domain in ("", "ai.onnx") and node.op_type in STANDARD and one_or_split
    if not standard and (node.domain, node.op_type) not in CONVERTERS:
        raise UserError(
            f"{node.domain or 'ai.onnx'}::{node.op_type} {node.name!r}: the operator is not supported; "
            f"Split and standard operators with one output are, and {', '.join(op_type for _, op_type in CONVERTERS)}"
        )
