"""What the inputs and attributes of a node of the graph are to the program that it becomes part of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from skim_export.bundle.program import Program
from skim_runtime.errors import UserError

__all__ = ["Operands", "View"]


@dataclass(frozen=True)
class View:
    """A value of the program as the graph has it: runs of `channels` of its columns are the last axis."""

    value: str
    channels: int


class Operands:
    """Reads nodes, and refuses what is not as expected with a `UserError` that names the node.

    Attributes:
        file: of the graph.
        program: which the nodes become.
        views: values by their name in the graph, where that is not the value's own, or not all columns are one axis.
    """

    def __init__(self, file: Path, program: Program) -> None:
        self.file = file
        self.program = program
        self.views: dict[str, View] = {}

    def refusal(self, node: ir.Node, reason: str) -> UserError:
        """The error that refuses a node."""
        return UserError(f"{self.file}: {node.op_type} {node.name}: {reason}")

    def attributes(self, node: ir.Node, **defaults: Any) -> dict[str, Any]:
        """The node's attributes, which must be among those with a default here."""
        given = {name: attribute.value for name, attribute in node.attributes.items()}
        for name in given.keys() - defaults.keys():
            raise self.refusal(node, f"the runtime of bundles does not know its attribute {name} ({given[name]})")
        return defaults | given

    def no_inputs_from(self, node: ir.Node, first: int) -> None:
        """Check that the inputs from `first` on are left out."""
        for i, value in enumerate(node.inputs[first:], first):
            if value is not None:
                raise self.refusal(node, f"the runtime of bundles does not know its input {i} ({value.name})")

    def view(self, node: ir.Node, i: int) -> View:
        """Input `i`, a value of the program."""
        value = _input(node, i)
        name = "nothing" if value is None else str(value.name)
        if name in self.views:
            return self.views[name]
        if name not in self.program.widths:
            raise self.refusal(node, f"its input {i} is {name}; expected a result of an operator before it")
        return View(name, self.program.widths[name])

    def value(self, node: ir.Node, i: int) -> str:
        """The name of input `i`, a value of the program whose columns are all in the last axis."""
        view = self.view(node, i)
        width = self.program.widths[view.value]
        if view.channels != width:
            raise self.refusal(node, f"its input {i} has runs of {view.channels} channels, expected all {width} in one")
        return view.value

    def values(self, node: ir.Node, count: int) -> list[str]:
        """The names of the first `count` inputs, values of one width."""
        names = [self.value(node, i) for i in range(count)]
        widths = [self.program.widths[name] for name in names]
        if len(set(widths)) > 1:
            raise self.refusal(node, f"its inputs have {' and '.join(map(str, widths))} channels, expected as many")
        return names

    def is_constant(self, node: ir.Node, i: int) -> bool:
        """Whether input `i` is one."""
        return _constant(node, i) is not None

    def scalar(self, node: ir.Node, i: int) -> float:
        """Input `i`, a constant of one element."""
        constant = self._array(node, i)
        if constant.size != 1:
            raise self.refusal(node, f"its input {i} has shape {list(constant.shape)}, expected one element")
        return float(constant.item())

    def integers(self, node: ir.Node, i: int) -> list[int]:
        """The elements of input `i`, a constant."""
        return [int(element) for element in self._array(node, i).reshape(-1)]

    def weight(self, node: ir.Node, i: int, shape: tuple[int | None, ...]) -> str:
        """The name of input `i`, a constant of a shape in which None stands for any size."""
        value, constant = _input(node, i), _constant(node, i)
        if value is None or value.name is None or constant is None:
            raise self.refusal(node, f"its input {i} is no constant")
        actual = tuple(constant.shape.numpy())
        if len(actual) != len(shape) or any(want not in (None, size) for want, size in zip(shape, actual, strict=True)):
            raise self.refusal(node, f"its input {i} ({value.name}) has shape {list(actual)}, expected {list(shape)}")
        self.program.tensors[value.name] = lambda: np.asarray(constant.numpy()).astype(np.float32, copy=False)
        return value.name

    def _array(self, node: ir.Node, i: int) -> npt.NDArray[Any]:
        constant = _constant(node, i)
        if constant is None:
            raise self.refusal(node, f"its input {i} is no constant")
        return np.asarray(constant.numpy())


def _input(node: ir.Node, i: int) -> ir.Value | None:
    return node.inputs[i] if i < len(node.inputs) else None


def _constant(node: ir.Node, i: int) -> ir.TensorProtocol | None:
    """Input `i` if it is an initializer or the output of a Constant node."""
    value = _input(node, i)
    return None if value is None else ir.convenience.get_const_tensor(value)
