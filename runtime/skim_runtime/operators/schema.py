"""The schema of the operators: names, inputs, attributes, and what these may be.

docs/format.md says what they mean. The functions of standard operators (skim_export/graph/function.py) and the kernels
(custom_ops/ort/) carry the schema out; all other code asks this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from skim_runtime.errors import UserError

__all__ = [
    "ACCURACY_LEVEL",
    "CLAMPED_SWIGLU",
    "CLASSES",
    "CLASSES_BY_VERSION",
    "DOMAIN",
    "EXPERTS",
    "FORMAT_VERSION",
    "INTEGER_ACCURACY",
    "LUT_GATHER",
    "LUT_MATMUL",
    "LUT_MOE",
    "LUT_SWIGLU",
    "OPERATORS",
    "PER_TOKEN",
    "PLAIN_CLASSES",
    "SWIGLU",
    "TENSORS",
    "Attribute",
    "Operator",
    "PackedSizes",
    "tensor_names",
]

DOMAIN = "ai.skim"
FORMAT_VERSION = 2  # the newest
PLAIN_CLASSES = 16  # of rows, by width and kind of levels
CLASSES = 22  # with those of windows, behind them
CLASSES_BY_VERSION = {1: PLAIN_CLASSES, 2: CLASSES}  # that a node of a version counts the rows of
TENSORS = ("codes", "codebook", "row_scale", "row_class", "column_scale", "bias")  # of a packed linear, as inputs
INTEGER_ACCURACY = 4  # the accuracy level that allows for integer arithmetic, as for MatMulNBits


class PackedSizes(Protocol):
    """What attributes say of a packed linear."""

    @property
    def out_features(self) -> int:
        """N."""

    @property
    def in_features(self) -> int:
        """K."""

    @property
    def rows_per_class(self) -> tuple[int, ...]:
        """Counts of rows."""


@dataclass(frozen=True)
class Attribute:
    """An attribute of a node: an integer, or so many of them.

    Attributes:
        name: with the prefix of a packed linear, if each has its own.
        allowed: the values that it may have; None if other attributes or the weights decide.
        by_class: whether there is an integer for each row class that the node's version has, or a single one.
        default: what is meant where it is missing; None if it must not be.
    """

    name: str
    allowed: Sequence[int] | None = None
    by_class: bool = False
    default: int | None = None

    def check(self, value: object, version: int) -> None:
        """Refuse what it can't be in a node of a version of the format.

        Raises:
            UserError: with its name, the value and what would be right.
        """
        if self.by_class:
            if not isinstance(value, list | tuple) or len(value) != CLASSES_BY_VERSION[version]:
                raise UserError(f"{self.name} must be {CLASSES_BY_VERSION[version]} integers, got {value}")
        elif not isinstance(value, int):
            raise UserError(f"{self.name} must be an integer, got {value}")
        elif self.allowed is not None and value not in self.allowed:
            raise UserError(f"{self.name} must be {_one_of(self.allowed)}, got {value}")


def _one_of(allowed: Sequence[int]) -> str:
    """Values in words."""
    if isinstance(allowed, range) and len(allowed) > 2:
        return f"{allowed[0]}..{allowed[-1]}"
    *others, last = map(str, allowed)
    return f"{', '.join(others)} or {last}" if others else last


VERSION = Attribute("version", tuple(CLASSES_BY_VERSION))
ROWS = Attribute("N", range(1, 1 << 31))
COLUMNS = Attribute("K", range(1, 1 << 31))
ROWS_PER_CLASS = Attribute("rows_per_class", by_class=True)  # of each packed linear
ACCURACY_LEVEL = Attribute("accuracy_level", range(INTEGER_ACCURACY + 1), default=0)
FLOATS = {1: "float32", 10: "float16", 16: "bfloat16"}  # by ONNX's numbers
DTYPE = Attribute("dtype", tuple(FLOATS))
EXPERTS = Attribute("experts", range(1, (1 << 16) + 1))
SWIGLU, CLAMPED_SWIGLU = 0, 1  # how an expert's gate and up go together (docs/format.md)
GATING = Attribute("gating", (SWIGLU, CLAMPED_SWIGLU))
PER_TOKEN = Attribute("per_token", range(1, (1 << 16) + 1))  # experts that a token is given


@dataclass(frozen=True)
class Operator:
    """An operator on packed linears.

    Attributes:
        name: its type.
        first_inputs: its inputs that are no weights.
        own: the attributes that not all operators have.
        prefixes: of the inputs and attributes of each packed linear.
        backwards: the prefixes of those with N columns and K rows.
    """

    name: str
    first_inputs: tuple[str, ...]
    own: tuple[Attribute, ...]
    prefixes: tuple[str, ...] = ("",)
    backwards: tuple[str, ...] = ()

    @property
    def is_product(self) -> bool:
        """Whether it multiplies, so that it has an arithmetic."""
        return ACCURACY_LEVEL in self.own

    @property
    def inputs(self) -> tuple[str, ...]:
        """All inputs in their order."""
        return (*self.first_inputs, *(f"{prefix}{tensor}" for prefix in self.prefixes for tensor in TENSORS))

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """All attributes, in the order in which they are written."""
        rows_per_class = (replace(ROWS_PER_CLASS, name=prefix + ROWS_PER_CLASS.name) for prefix in self.prefixes)
        return (VERSION, ROWS, COLUMNS, *self.own, *rows_per_class)

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The value of every attribute of a node that has the `given` ones.

        Raises:
            UserError: one is missing or unknown, or can't be what it is.
        """
        attributes = {attribute.name: attribute for attribute in self.attributes}
        for name in sorted(given.keys() - attributes.keys()):
            raise UserError(f"the attribute {name} is not supported")
        values = {}
        for name, attribute in attributes.items():
            values[name] = given.get(name, attribute.default)
            if values[name] is None:
                raise UserError(f"the attribute {name} is missing")
            attribute.check(values[name], values[VERSION.name])
        return values

    def shapes(self, values: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Rows and columns of each packed linear of a node with these attributes: those of all experts, if it has some.

        Args:
            values: the attributes, by name.
        """
        rows, columns, experts = values[ROWS.name], values[COLUMNS.name], values.get(EXPERTS.name, 1)
        shapes = [(columns, rows) if prefix in self.backwards else (rows, columns) for prefix in self.prefixes]
        return [(experts * n, k) for n, k in shapes]

    def node_inputs(self, first: str | Sequence[str], names: Sequence[str]) -> list[str]:
        """The inputs of a node on the packed linears of these names, behind the value or values `first`."""
        linears = [tensor_names(name) for _, name in zip(self.prefixes, names, strict=True)]
        values = [first] if isinstance(first, str) else first
        return [*values, *(source for sources in linears for source in sources.values())]

    def node_attributes(self, linears: Sequence[PackedSizes], **own: int) -> dict[str, Any]:
        """The attributes of a node on packed linears; `own` are the operator's own ones.

        The version is the oldest that has all their row classes, so that older libraries run what they can.

        Raises:
            UserError: `own` is not what the operator has.
        """
        has_windows = any(any(linear.rows_per_class[PLAIN_CLASSES:]) for linear in linears)
        version = 2 if has_windows else 1
        values: dict[str, Any] = {
            VERSION.name: version,
            ROWS.name: linears[0].out_features // own.get(EXPERTS.name, 1),
            COLUMNS.name: linears[0].in_features,
            **own,
        }
        for prefix, linear in zip(self.prefixes, linears, strict=True):
            values[prefix + ROWS_PER_CLASS.name] = list(linear.rows_per_class[: CLASSES_BY_VERSION[version]])
        self.check(values)
        return values


LUT_MATMUL = Operator("LutMatMul", ("X",), (ACCURACY_LEVEL,))
LUT_SWIGLU = Operator("LutSwiglu", ("X",), (ACCURACY_LEVEL,), ("gate_", "up_"))
LUT_GATHER = Operator("LutGather", ("ids",), (DTYPE,))
LUT_MOE = Operator(
    "LutMoe",
    ("X", "experts", "shares"),
    (EXPERTS, PER_TOKEN, GATING, ACCURACY_LEVEL),
    ("gate_", "up_", "down_"),
    backwards=("down_",),
)
OPERATORS = {operator.name: operator for operator in (LUT_MATMUL, LUT_SWIGLU, LUT_GATHER, LUT_MOE)}


def tensor_names(linear: str) -> dict[str, str]:
    """Names of the initializers of a packed linear, by tensor."""
    return {tensor: f"{linear}.{tensor}" for tensor in TENSORS}
