"""A node of an ONNX graph as a converter sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import onnx
from tvm import relax

from relax_model.operands import PackedOperand
from relax_model.parameters import Parameters
from skim_export.bundle.abi import Kernels
from skim_runtime.errors import UserError

__all__ = ["Node"]


class Node:
    """One node: its inputs as Relax expressions, its attributes, and the builder that takes what it becomes.

    Inputs and attributes that a converter has not asked for would be lost silently: `check` refuses them.

    Args:
        proto: the node.
        values: Relax expressions by the names of the graph.
        parameters: for inputs that are initializers.
        builder: builds the function of the graph.
        operands: its packed linears.
        kernels: the kernels that there are for these.
    """

    def __init__(
        self,
        proto: onnx.NodeProto,
        values: Mapping[str, Any],
        parameters: Parameters,
        builder: relax.BlockBuilder,
        operands: Sequence[PackedOperand],
        kernels: Kernels,
    ) -> None:
        self.builder = builder
        self.operands = operands
        self.kernels = kernels
        self._proto = proto
        self._values = values
        self._parameters = parameters
        self._attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
        self._unused_attributes = set(self._attributes)
        self._unused_inputs = {i for i, name in enumerate(proto.input) if name}
        if operands:  # what describes them has been read and checked
            self._unused_attributes.clear()
            self._unused_inputs.intersection_update({0})

    @property
    def op_type(self) -> str:
        """Operator with its domain."""
        return f"{self._proto.domain}::{self._proto.op_type}" if self._proto.domain else self._proto.op_type

    def fail(self, problem: str) -> NoReturn:
        """Refuse the node.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.op_type} {self._proto.name!r}: {problem}")

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        self._unused_attributes.discard(name)
        return self._attributes.get(name, default)

    def expect(self, name: str, value: Any, default: Any) -> None:
        """Refuse the node if an attribute is not `value`."""
        if (found := self.attribute(name, default)) != value:
            self.fail(f"{name} must be {value}, got {found}")

    def input(self, index: int) -> Any:
        """An input; an initializer becomes a parameter."""
        self._unused_inputs.discard(index)
        name = self._proto.input[index]
        return self._parameters.variable(name) if name in self._parameters.tensors else self._values[name]

    def has_input(self, index: int) -> bool:
        """Whether there is such an input."""
        return index < len(self._proto.input) and bool(self._proto.input[index])

    def ignore_input(self, index: int) -> None:
        """Say that an input is not needed."""
        self._unused_inputs.discard(index)

    def tokens(self, index: int) -> Any:
        """An input of float32 with shape `[1, tokens, channels]`.

        Raises:
            UserError: it has another type or shape.
        """
        value = self.input(index)
        if value.ty.dtype.dtype != "float32" or value.ty.ndim != 3 or value.ty.shape[0] != 1:
            self.fail(f"input {index} must be float32 [1, tokens, channels], got {value.ty}")
        return value

    def check(self, outputs: Sequence[Any]) -> None:
        """Refuse the node if something of it was not converted to `outputs`.

        Raises:
            UserError: naming the attribute, input or output.
        """
        for name in sorted(self._unused_attributes):
            self.fail(f"the attribute {name} is not supported")
        for index in sorted(self._unused_inputs):
            self.fail(f"input {index}, {self._proto.input[index]!r}, is not supported")
        for index, name in enumerate(self._proto.output):
            if name and (index >= len(outputs) or outputs[index] is None):
                self.fail(f"output {index}, {name!r}, is not supported")
