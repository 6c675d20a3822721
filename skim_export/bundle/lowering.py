"""From the graph of an exported decoder to a `Program`.

What depends on the attention mask is left out: the runtime knows at which position it is. Nothing is guessed: an
operator, input or attribute that the runtime lacks is refused.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from skim_export.bundle.program import Attention, Kind, Operator, Program
from skim_export.graph.reader import packed_node
from skim_runtime.errors import UserError
from skim_runtime.operators import DOMAIN, LUT_GATHER, LUT_MATMUL, LUT_SWIGLU, PackedWeights

__all__ = ["read_program"]

MICROSOFT = "com.microsoft"
MASK_OPERATORS = ("Constant", "ReduceSum", "Sub", "Cast", "Shape", "Gather")
PAST_INPUTS, MASK_INPUTS, CACHE_INPUTS = (3, 4), (5, 6), (7, 8)  # of GroupQueryAttention


def read_program(file: Path) -> Program:
    """The program of an exported model.

    Raises:
        UserError: the graph has something that the runtime of bundles lacks.
    """
    return _Lowering(file).run(ir.load(file).graph)


class _Lowering:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.program = Program()
        self.mask = {"attention_mask"}  # values that follow from it and from constants
        self.converters: dict[tuple[str, str], Callable[[ir.Node], None]] = {
            (DOMAIN, LUT_GATHER.name): self.gather,
            (DOMAIN, LUT_MATMUL.name): self.matmul,
            (DOMAIN, LUT_SWIGLU.name): self.swiglu,
            ("", "SimplifiedLayerNormalization"): self.norm,
            (MICROSOFT, "SkipSimplifiedLayerNormalization"): self.add_norm,
            (MICROSOFT, "GroupQueryAttention"): self.attention,
            ("", "Mul"): self.mul,
            ("", "Relu"): self.relu,
            ("", "Gelu"): self.gelu,
        }

    def run(self, graph: ir.Graph) -> Program:
        for node in graph:
            if self.follows_from_mask(node):
                self.mask.update(value.name or "" for value in node.outputs)
            elif converter := self.converters.get((node.domain, node.op_type)):
                converter(node)
            else:
                raise self.refusal(node, "the runtime of bundles has no such operator")
        if self.program.logits not in self.program.widths:
            raise UserError(f"{self.file}: has no logits; expected the graph of a text decoder")
        return self.program

    def follows_from_mask(self, node: ir.Node) -> bool:
        inputs = {value.name for value in node.inputs if value is not None}
        return node.domain == "" and node.op_type in MASK_OPERATORS and inputs <= self.mask

    def refusal(self, node: ir.Node, reason: str) -> UserError:
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

    def value(self, node: ir.Node, i: int) -> str:
        """The name of input `i`, a value of the program."""
        value = node.inputs[i]
        if value is None or value.name not in self.program.widths:
            name = "nothing" if value is None else value.name
            raise self.refusal(node, f"its input {i} is {name}; expected a result of an operator before it")
        return str(value.name)

    def weight(self, node: ir.Node, i: int, shape: tuple[int | None, ...]) -> str:
        """The name of input `i`, a constant of a shape in which None stands for any size."""
        value = node.inputs[i]
        constant = value.const_value if value is not None else None
        if value is None or value.name is None or constant is None:
            raise self.refusal(node, f"its input {i} is no constant")
        actual = tuple(constant.shape.numpy())
        if len(actual) != len(shape) or any(want not in (None, size) for want, size in zip(shape, actual, strict=True)):
            raise self.refusal(node, f"its input {i} ({value.name}) has shape {list(actual)}, expected {list(shape)}")
        self.program.tensors[value.name] = lambda: np.asarray(constant.numpy()).astype(np.float32, copy=False)
        return value.name

    def emit(self, kind: Kind, inputs: list[str], outputs: dict[str, int], **more: Any) -> None:
        """Append an operator; `outputs` has the width of each."""
        self.program.widths.update(outputs)
        self.program.operators.append(Operator(kind, tuple(inputs), tuple(outputs), **more))

    def packed(self, node: ir.Node) -> tuple[PackedWeights[ir.TensorProtocol], ...]:
        """The packed linears of a node."""
        try:
            return packed_node(node).operands
        except UserError as error:
            raise UserError(f"{self.file}: {error}") from None

    def gather(self, node: ir.Node) -> None:
        (weights,) = self.packed(node)
        ids = node.inputs[0]
        if ids is None or ids.name != "input_ids":
            raise self.refusal(node, "looks up something else than input_ids")
        self.program.linears[weights.name] = weights
        self.emit(Kind.EMBED, [], {_output(node): weights.in_features}, unit=weights.name)

    def matmul(self, node: ir.Node) -> None:
        (weights,) = self.packed(node)
        self.product(node, weights, _output(node))

    def swiglu(self, node: ir.Node) -> None:
        y = _output(node)
        parts = [f"{y}.gate", f"{y}.up"]
        for weights, part in zip(self.packed(node), parts, strict=True):
            self.product(node, weights, part)
        self.emit(Kind.SWIGLU, parts, {y: self.program.widths[parts[0]]})

    def product(self, node: ir.Node, weights: PackedWeights[ir.TensorProtocol], y: str) -> None:
        x = self.value(node, 0)
        width = self.program.widths[x]
        if width != weights.in_features:
            raise self.refusal(node, f"K is {weights.in_features}, but its input has {width} channels")
        self.program.linears[weights.name] = weights
        arithmetic = "float"
        if weights.integer:
            arithmetic = "integer"
            self.program.integer.add(weights.name)
        scale = hashlib.sha256(np.asarray(weights.tensors["column_scale"]).tobytes()).hexdigest()
        prepared = f"{x} prepared for {arithmetic} {scale}"  # which linears of the same scale share
        if prepared not in self.program.widths:
            self.emit(Kind.PREPARE, [x], {prepared: width}, unit=weights.name)
        self.emit(Kind.PRODUCT, [prepared], {y: weights.out_features}, unit=weights.name)

    def norm(self, node: ir.Node) -> None:
        attributes = self.attributes(node, epsilon=1e-5, axis=-1, stash_type=1)
        if attributes["axis"] != -1:
            raise self.refusal(node, f"attribute axis must be -1, got {attributes['axis']}")
        x = self.value(node, 0)
        width = self.program.widths[x]
        weight = self.weight(node, 1, (width,))
        self.emit(Kind.NORM, [x], {_output(node): width}, weight=weight, epsilon=attributes["epsilon"])

    def add_norm(self, node: ir.Node) -> None:
        attributes = self.attributes(node, epsilon=1e-12)
        self.no_inputs_from(node, 3)
        x, y = self.value(node, 0), self.value(node, 1)
        width = self.program.widths[x]
        weight = self.weight(node, 2, (width,))
        total = node.outputs[3].name if len(node.outputs) > 3 else None
        outputs = {_output(node): width, total or f"{_output(node)}.sum": width}
        self.emit(Kind.ADD_NORM, [x, y], outputs, weight=weight, epsilon=attributes["epsilon"])

    def attention(self, node: ir.Node) -> None:
        attributes = self.attributes(
            node,
            num_heads=0,
            kv_num_heads=0,
            scale=0.0,
            softcap=0.0,
            local_window_size=-1,
            do_rotary=0,
            rotary_interleaved=0,
        )
        names = [value.name if value is not None else None for value in node.inputs]
        if names[1] or names[2]:
            raise self.refusal(node, "queries, keys and values must be packed in one input")
        if not all((names[i] or "").startswith("past_key_values.") for i in PAST_INPUTS):
            raise self.refusal(node, "its past keys and values are no inputs of the graph")
        if not all(names[i] in self.mask for i in MASK_INPUTS):
            raise self.refusal(node, "its lengths do not follow from attention_mask")
        self.no_inputs_from(node, 1 + max(CACHE_INPUTS))
        x = self.value(node, 0)
        heads, kv_heads = attributes["num_heads"], attributes["kv_num_heads"]
        head_size, rest = divmod(self.program.widths[x], heads + 2 * kv_heads)
        if rest or heads % kv_heads:
            raise self.refusal(node, f"{heads} and {kv_heads} heads do not fit {self.program.widths[x]} channels")
        rotary: dict[str, Any] = {}
        if attributes["do_rotary"]:
            cos, sin = (self.weight(node, i, (None, None)) for i in CACHE_INPUTS)
            rotary = {
                "rotary_size": 2 * self.program.tensors[cos]().shape[1],
                "interleaved": bool(attributes["rotary_interleaved"]),
                "cos_cache": cos,
                "sin_cache": sin,
            }
        attention = Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_size=head_size,
            window=max(attributes["local_window_size"], 0),
            scale=attributes["scale"] or 1 / math.sqrt(head_size),
            softcap=attributes["softcap"],
            **rotary,
        )
        self.emit(Kind.ATTENTION, [x], {_output(node): heads * head_size}, attention=attention)

    def mul(self, node: ir.Node) -> None:
        a, b = self.value(node, 0), self.value(node, 1)
        self.emit(Kind.MUL, [a, b], {_output(node): self.program.widths[a]})

    def relu(self, node: ir.Node) -> None:
        x = self.value(node, 0)
        self.emit(Kind.RELU, [x], {_output(node): self.program.widths[x]})

    def gelu(self, node: ir.Node) -> None:
        approximate = self.attributes(node, approximate="none")["approximate"]
        x = self.value(node, 0)
        kind = Kind.GELU_TANH if approximate == "tanh" else Kind.GELU
        self.emit(kind, [x], {_output(node): self.program.widths[x]})


def _output(node: ir.Node) -> str:
    return node.outputs[0].name or ""
