"""The parser: what a node of our domain says of its packed linears."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from skim_runtime.errors import UserError
from skim_runtime.operators.schema import (
    ACCURACY_LEVEL,
    CLASSES,
    DOMAIN,
    EXPERTS,
    INTEGER_ACCURACY,
    OPERATORS,
    PER_TOKEN,
    ROWS_PER_CLASS,
    TENSORS,
    Operator,
)

__all__ = ["PackedNode", "PackedWeights", "parse_node", "parse_proto"]

MAX_INTEGER_COLUMNS = 65536  # kMaxIntegerColumns in custom_ops/include/skim/kernels.h
INT, INTS = 2, 7  # onnx.AttributeProto.AttributeType


class Tensor(Protocol):
    """An initializer, such as a numpy array or a tensor of onnx_ir."""

    @property
    def size(self) -> int:
        """Number of elements."""

    @property
    def dtype(self) -> Any:
        """Has a `name`."""


T = TypeVar("T", bound=Tensor)


@dataclass(frozen=True)
class PackedWeights(Generic[T]):
    """A packed linear in a graph, whose tensors stay where they are until they are asked for.

    Attributes:
        name: e.g. "model.layers.0.attn.qkv_proj"; a tied head has its embedding's.
        out_features: N.
        in_features: K.
        rows_per_class: counts of rows of all classes that there are now.
        sources: names of its initializers, by tensor of the packed format.
        tensors: the initializers, by tensor of the packed format.
        integer: whether the node multiplies it in integers (docs/format.md, "Arithmetic").
    """

    name: str
    out_features: int
    in_features: int
    rows_per_class: tuple[int, ...]
    sources: dict[str, str]
    tensors: dict[str, T]
    integer: bool


@dataclass(frozen=True)
class PackedNode(Generic[T]):
    """A node of our domain.

    Attributes:
        operator: what it computes.
        own: values of the operator's own attributes, by name.
        operands: its packed linears.
    """

    operator: Operator
    own: dict[str, int]
    operands: tuple[PackedWeights[T], ...]

    @property
    def read_share(self) -> float:
        """How much of its packed linears it reads for a token: what of the experts a token is given."""
        return self.own.get(PER_TOKEN.name, 1) / self.own.get(EXPERTS.name, 1)


def parse_node(
    op_type: str, name: str, inputs: Sequence[str], attributes: Mapping[str, Any], initializers: Mapping[str, T]
) -> PackedNode[T]:
    """Parse a node of our domain.

    Args:
        op_type: its operator.
        name: its name, for messages.
        inputs: names of its inputs.
        attributes: integers, or sequences of integers, by name.
        initializers: tensors of the graph by name.

    Raises:
        UserError: the node is not what the schema says; the message begins with operator and name.
    """
    try:
        if op_type not in OPERATORS:
            raise UserError(f"the operator is unknown; those of {DOMAIN} are {', '.join(OPERATORS)}")
        operator = OPERATORS[op_type]
        values = operator.check(attributes)
        tensors = _initializers(operator, inputs, initializers)
    except UserError as error:
        raise UserError(f"{op_type} {name!r}: {error}") from None
    operands = []
    for i, (prefix, (rows, columns)) in enumerate(zip(operator.prefixes, operator.shapes(values), strict=True)):
        first = len(operator.first_inputs) + i * len(TENSORS)
        sources = dict(zip(TENSORS, inputs[first : first + len(TENSORS)], strict=True))
        weights = {tensor: tensors[source] for tensor, source in sources.items()}
        counts = values[prefix + ROWS_PER_CLASS.name]
        operand = PackedWeights(
            name=sources[TENSORS[0]].removesuffix(f".{TENSORS[0]}"),
            out_features=rows,
            in_features=columns,
            rows_per_class=(*counts, *[0] * (CLASSES - len(counts))),
            sources=sources,
            tensors=weights,
            integer=_is_integer(values, columns, weights["codebook"]),
        )
        operands.append(operand)
    return PackedNode(operator, {attribute.name: values[attribute.name] for attribute in operator.own}, tuple(operands))


def parse_proto(node: Any, initializers: Mapping[str, T]) -> PackedNode[T]:
    """Parse an `onnx.NodeProto`, or a node of `skim_runtime.onnx_file`.

    Raises:
        UserError: like `parse_node`.
    """
    attributes = {attribute.name: _value(attribute) for attribute in node.attribute}
    return parse_node(node.op_type, node.name, node.input, attributes, initializers)


def _value(attribute: Any) -> Any:
    if attribute.type == INTS:
        return list(attribute.ints)
    return attribute.i if attribute.type == INT else "another type"


def _initializers(operator: Operator, inputs: Sequence[str], initializers: Mapping[str, T]) -> dict[str, T]:
    """The weights of a node by the names that they have in the graph."""
    if len(inputs) != len(operator.inputs):
        raise UserError(f"must have {len(operator.inputs)} inputs, got {len(inputs)}")
    found = {}
    for meaning, source in list(zip(operator.inputs, inputs, strict=True))[len(operator.first_inputs) :]:
        tensor = initializers.get(source)
        if tensor is None:
            raise UserError(f"{meaning} must be an initializer, got {source!r}")
        found[source] = tensor
    return found


def _is_integer(values: Mapping[str, Any], columns: int, codebook: Tensor) -> bool:
    return (
        values.get(ACCURACY_LEVEL.name) == INTEGER_ACCURACY
        and columns <= MAX_INTEGER_COLUMNS
        and (codebook.size == 0 or codebook.dtype.name.lower() == "int8")  # INT8 in onnx_ir
    )
