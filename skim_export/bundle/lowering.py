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

from skim_export.bundle.operands import Operands, View
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


class _Lowering(Operands):
    def __init__(self, file: Path) -> None:
        super().__init__(file, Program())
        self.mask = {"attention_mask"}  # values that follow from it and from constants
        self.converters: dict[tuple[str, str], Callable[[ir.Node], None]] = {
            (DOMAIN, LUT_GATHER.name): self.gather,
            (DOMAIN, LUT_MATMUL.name): self.matmul,
            (DOMAIN, LUT_SWIGLU.name): self.swiglu,
            ("", "SimplifiedLayerNormalization"): self.norm,
            (MICROSOFT, "SkipSimplifiedLayerNormalization"): self.add_norm,
            (MICROSOFT, "GroupQueryAttention"): self.attention,
            ("", "Split"): self.split,
            ("", "Reshape"): self.reshape,
            ("", "Add"): self.add,
            ("", "Mul"): self.mul,
            ("", "Div"): self.div,
            ("", "Tanh"): self.tanh,
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
        x, y = self.view(node, 0), _output(node)
        self.emit(
            Kind.NORM,
            [x.value],
            {y: self.program.widths[x.value]},
            weight=self.weight(node, 1, (x.channels,)),
            channels=x.channels,
            epsilon=attributes["epsilon"],
        )
        self.views[y] = View(y, x.channels)

    def add_norm(self, node: ir.Node) -> None:
        attributes = self.attributes(node, epsilon=1e-12)
        self.no_inputs_from(node, 3)
        x, y = self.values(node, 2)
        width = self.program.widths[x]
        weight = self.weight(node, 2, (width,))
        total = node.outputs[3].name if len(node.outputs) > 3 else None
        outputs = {_output(node): width, total or f"{_output(node)}.sum": width}
        epsilon = attributes["epsilon"]
        self.emit(Kind.ADD_NORM, [x, y], outputs, weight=weight, channels=width, epsilon=epsilon)

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
        if not all((names[i] or "").startswith("past_key_values.") for i in PAST_INPUTS):
            raise self.refusal(node, "its past keys and values are no inputs of the graph")
        if not all(names[i] in self.mask for i in MASK_INPUTS):
            raise self.refusal(node, "its lengths do not follow from attention_mask")
        self.no_inputs_from(node, 1 + max(CACHE_INPUTS))
        heads, kv_heads = attributes["num_heads"], attributes["kv_num_heads"]
        inputs, head_size = self.queries_keys_values(node, heads, kv_heads, packed=not (names[1] or names[2]))
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
        self.emit(Kind.ATTENTION, inputs, {_output(node): heads * head_size}, attention=attention)

    def queries_keys_values(self, node: ir.Node, heads: int, kv_heads: int, *, packed: bool) -> tuple[list[str], int]:
        """What attention reads, three values or parts of one, and the channels of a head."""
        inputs = [self.value(node, i) for i in range(1 if packed else 3)]
        widths = [self.program.widths[name] for name in inputs]
        head_size = sum(widths) // (heads + 2 * kv_heads)
        sizes = [heads * head_size, kv_heads * head_size, kv_heads * head_size]
        if widths != ([sum(sizes)] if packed else sizes) or heads % kv_heads:
            channels = ", ".join(map(str, widths))
            raise self.refusal(node, f"{heads} and {kv_heads} heads do not fit {channels} channels")
        return self.parts(inputs[0], sizes, [""] * 3) if packed else inputs, head_size

    def parts(self, value: str, sizes: list[int], names: list[str]) -> list[str]:
        """Take a value apart; parts without a name in the graph get one."""
        start = 0
        names = [name or f"{value}.{i}" for i, name in enumerate(names)]
        for name, size in zip(names, sizes, strict=True):
            self.program.add_part(name, value, start, size)
            start += size
        return names

    def split(self, node: ir.Node) -> None:
        attributes = self.attributes(node, axis=0)
        if attributes["axis"] != -1:
            raise self.refusal(node, f"attribute axis must be -1, got {attributes['axis']}")
        x, sizes = self.value(node, 0), self.integers(node, 1)
        width = self.program.widths[x]
        if sum(sizes) != width or min(sizes) < 1 or len(sizes) != len(node.outputs):
            raise self.refusal(node, f"parts of {sizes} channels do not make {width} in {len(node.outputs)} outputs")
        self.parts(x, sizes, [output.name or "" for output in node.outputs])

    def reshape(self, node: ir.Node) -> None:
        self.attributes(node)
        x, shape = self.view(node, 0).value, self.integers(node, 1)
        width = self.program.widths[x]
        if len(shape) != 3 or shape[:2] != [0, -1] or shape[2] < 1 or width % shape[2]:
            raise self.refusal(node, f"its shape is {shape}, expected [0, -1, a divisor of {width}]")
        self.views[_output(node)] = View(x, shape[2])

    def add(self, node: ir.Node) -> None:
        self.attributes(node)
        self.elementwise(node, Kind.ADD, self.values(node, 2))

    def mul(self, node: ir.Node) -> None:
        self.attributes(node)
        if self.is_constant(node, 1):
            self.elementwise(node, Kind.SCALE, [self.value(node, 0)], factor=self.scalar(node, 1))
        else:
            self.elementwise(node, Kind.MUL, self.values(node, 2))

    def div(self, node: ir.Node) -> None:
        self.attributes(node)
        divisor = self.scalar(node, 1)
        if divisor == 0:
            raise self.refusal(node, "divides by 0")
        self.elementwise(node, Kind.SCALE, [self.value(node, 0)], factor=1 / divisor)

    def relu(self, node: ir.Node) -> None:
        self.elementwise(node, Kind.RELU, [self.value(node, 0)])

    def gelu(self, node: ir.Node) -> None:
        approximate = self.attributes(node, approximate="none")["approximate"]
        self.elementwise(node, Kind.GELU_TANH if approximate == "tanh" else Kind.GELU, [self.value(node, 0)])

    def tanh(self, node: ir.Node) -> None:
        self.elementwise(node, Kind.TANH, [self.value(node, 0)])

    def elementwise(self, node: ir.Node, kind: Kind, inputs: list[str], **more: Any) -> None:
        self.emit(kind, inputs, {_output(node): self.program.widths[inputs[0]]}, **more)


def _output(node: ir.Node) -> str:
    return node.outputs[0].name or ""
