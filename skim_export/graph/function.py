"""The operators written in standard ones, as functions that travel inside the model.

A stock ONNX Runtime inlines them, so the model runs (slowly) where our library is missing. They follow docs/format.md;
the place of every bit is taken from `skim_export.packed.RowClass`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from skim_export.checkpoint import CLAMPED_ALPHA, CLAMPED_LIMIT
from skim_export.packed import CLASSES, COLUMNS, LANES, CodebookType, Field, PackedLinear, RowClass
from skim_runtime.operators import (
    CLAMPED_SWIGLU,
    DOMAIN,
    LUT_GATHER,
    LUT_MATMUL,
    LUT_MOE,
    LUT_SWIGLU,
    OPERATORS,
    PLAIN_CLASSES,
    Operator,
)

__all__ = ["OPSET", "lut_functions"]

OPSET = 22  # that of the decoder graph: a function must not import another one


class _Body:
    """The nodes of a function under construction; every operator returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(self, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        output = f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], domain=domain, **attributes))
        return output

    def attribute(
        self, name: str, kind: onnx.AttributeProto.AttributeType, op_type: str, field: str, *inputs: str
    ) -> str:
        """A node whose attribute `field` is the function's attribute `name`."""
        output = self.op(op_type, *inputs)
        self.refer(field, kind, name)
        return output

    def refer(self, field: str, kind: onnx.AttributeProto.AttributeType, name: str) -> None:
        """Make the attribute `field` of the last node the function's attribute `name`."""
        self.nodes[-1].attribute.append(onnx.AttributeProto(name=field, ref_attr_name=name, type=kind))

    def integer(self, name: str) -> str:
        """An integer attribute of the function, `[1]`."""
        value = self.attribute(name, onnx.AttributeProto.INT, "Constant", "value_int")
        return self.op("Reshape", value, self.constant([1]))

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = self.op("Constant", value=numpy_helper.from_array(array))
        return self.constants[key]

    def cast(self, value: str, dtype: int) -> str:
        return self.op("Cast", value, to=dtype)

    def split(self, value: str, sizes: str, count: int) -> list[str]:
        """Cut a tensor along its first axis into `count` parts of `sizes` elements, some perhaps none."""
        parts = [f"part_{len(self.nodes)}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node("Split", [value, sizes], parts, axis=0))
        return parts

    def argsort(self, keys: str, count: str) -> str:
        outputs = [f"sorted_{len(self.nodes)}", f"order_{len(self.nodes)}"]
        self.nodes.append(helper.make_node("TopK", [keys, count], outputs, largest=0))
        return outputs[1]

    def filled(self, tensor: str, length: str, default: float, dtype: npt.DTypeLike) -> str:
        """`tensor` if it has `length` elements; an empty one stands for `length` times the default."""
        missing = self.op("Sub", length, self.op("Shape", tensor))
        value = numpy_helper.from_array(np.asarray([default], dtype))
        return self.op("Concat", tensor, self.op("ConstantOfShape", missing, value=value), axis=0)

    def function(self, name: str, inputs: list[str], output: str, attributes: Iterable[str]) -> onnx.FunctionProto:
        self.nodes.append(helper.make_node("Identity", [output], ["Y"]))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_function(DOMAIN, name, inputs, ["Y"], self.nodes, opsets, list(attributes))


class _Field(NamedTuple):
    """Field i of all eight codes, or windows, of a lane, `[8]` each; length 0 where one has no such field."""

    vector: list[int]
    bit: list[int]
    mask: list[int]
    code_bit: list[int]


def _fields(row_class: RowClass) -> list[_Field]:
    by_code = [[f for f in row_class.window_fields if f.code == j] for j in range(8)]
    fields = []
    for i in range(max(len(of_code) for of_code in by_code)):
        chosen = [of_code[i] if i < len(of_code) else Field(j, 0, 0, 0, 0) for j, of_code in enumerate(by_code)]
        masks = [(1 << f.length) - 1 for f in chosen]
        fields.append(_Field([f.vector for f in chosen], [f.bit for f in chosen], masks, [f.code_bit for f in chosen]))
    return fields


class _Weight:
    """Emits the nodes that rebuild W, class by class.

    A column k lies in superblock k / 256, which has 32 lanes or, if it is the last, shorter one, fewer; its code is
    number (k mod 256) / lanes of lane (k mod 256) mod lanes. Both are computed once for all rows and classes.

    Args:
        body: where the nodes go.
        classes: the row classes that there may be.
        codebook: the type of its entries.
        prefix: of the inputs and attributes of this packed linear.
        shape: its rows and columns, values `[1]`; by default those that the attributes N and K give.
    """

    def __init__(
        self,
        body: _Body,
        classes: list[int],
        codebook: npt.DTypeLike,
        *,
        prefix: str = "",
        shape: tuple[str, str] | None = None,
    ) -> None:
        b = self.body = body
        self.prefix = prefix
        entries: CodebookType = "int8" if np.dtype(codebook) == np.int8 else "float16"
        self.classes = [RowClass.numbered(number, entries) for number in classes]
        self.rows, self.columns = shape or (b.integer("N"), b.integer("K"))
        counts = b.attribute(f"{prefix}rows_per_class", onnx.AttributeProto.INTS, "Constant", "value_ints")
        if max(classes) >= PLAIN_CLASSES:  # nodes of version 1 don't count rows with windows
            counts = b.op("Concat", counts, b.constant([0] * (CLASSES - PLAIN_CLASSES)), axis=0)
        self.counts = b.op("Gather", counts, b.constant(classes))

        block_columns, lanes = b.constant(COLUMNS), b.constant(LANES)
        k = self.range(self.columns)
        block = b.op("Div", k, block_columns)
        first = b.op("Mul", block, block_columns)
        column = b.op("Sub", k, first)
        rest = b.op("Sub", self.columns, first)  # columns from this superblock on
        tail_lanes = b.op("Mul", b.op("Div", b.op("Add", rest, b.constant(31)), b.constant(32)), b.constant(4))
        self.lanes = b.op("Min", tail_lanes, lanes)
        self.code = b.op("Div", column, self.lanes)
        self.lane = b.op("Mod", column, self.lanes)
        self.bytes_before = b.op("Mul", block, lanes)  # for each bit of width
        groups = b.op("Div", b.op("Add", self.columns, b.constant(31)), b.constant(32))
        self.row_bytes = b.op("Mul", groups, b.constant(4))  # for each bit of width

    def range(self, count: str) -> str:
        """0, 1, ... count - 1."""
        b = self.body
        return b.op("Range", b.constant(0), b.op("Squeeze", count), b.constant(1))

    def codes(self, row_class: RowClass, packed: str) -> str:
        """The codes, or windows, of the packed rows of one class, uint8 `[count, K]`."""
        b = self.body
        width = b.constant([row_class.bits])
        row_bytes = b.op("Mul", self.row_bytes, width)
        rows = b.op("Reshape", packed, b.op("Concat", b.constant([-1]), row_bytes, axis=0))
        start = b.op("Add", b.op("Mul", self.bytes_before, width), self.lane)
        codes = ""
        for field in _fields(row_class):
            vector = b.op("Mul", b.op("Gather", b.constant(field.vector), self.code), self.lanes)
            value = b.op("Gather", rows, b.op("Add", start, vector), axis=1)
            value = b.op("BitShift", value, self.of_code(field.bit), direction="RIGHT")
            value = b.op("BitwiseAnd", value, self.of_code(field.mask))
            if any(field.code_bit):
                value = b.op("BitShift", value, self.of_code(field.code_bit), direction="LEFT")
            codes = b.op("BitwiseOr", codes, value) if codes else value
        return codes

    def of_code(self, values: list[int]) -> str:
        """What `values` `[8]` says of the code of each column, uint8 `[K]`, or one number if it is all the same."""
        b = self.body
        if len(set(values)) == 1:
            return b.constant(values[0], np.uint8)
        return b.op("Gather", b.constant(values, np.uint8), self.code)

    def levels(self, row_class: RowClass, codes: str, entries: str, scales: str) -> str:
        """The levels that the codes of one class stand for, float32 `[count, K]`."""
        b = self.body
        if row_class.codebook is None:
            scale_offset = b.op("Reshape", scales, b.constant([-1, 2]))
            middle = b.constant(1 << (row_class.bits - 1), np.float32)
            steps = b.op("Sub", b.cast(codes, onnx.TensorProto.FLOAT), middle)
            scale = b.op("Gather", scale_offset, b.constant([0]), axis=1)
            offset = b.op("Gather", scale_offset, b.constant([1]), axis=1)
            return b.op("Add", offset, b.op("Mul", scale, steps))
        table = b.op("Reshape", b.cast(entries, onnx.TensorProto.FLOAT), b.constant([-1, row_class.entries]))
        if row_class.codebook == "int8":
            table = b.op("Mul", table, b.op("Reshape", scales, b.constant([-1, 1])))
        if row_class.memory:  # the upper half of the levels: the negatives of the lower one, in reversed order
            backwards = b.op("Gather", table, b.constant(list(reversed(range(row_class.entries)))), axis=1)
            table = b.op("Concat", table, b.op("Neg", backwards), axis=1)
        return b.op("GatherElements", table, b.cast(codes, onnx.TensorProto.INT32), axis=1)

    def parts(self, tensor: str, elements: list[int]) -> list[str]:
        """Cut a tensor by class; a row of a class has so many elements."""
        b = self.body
        return b.split(tensor, b.op("Mul", self.counts, b.constant(elements)), len(self.classes))

    def dense(self, rows: str | None = None) -> str:
        """W in original row order, float32 `[N, K]`, or only its rows `rows`."""
        b = self.body
        widths = b.constant([row_class.bits for row_class in self.classes])
        code_sizes = b.op("Mul", b.op("Mul", self.counts, widths), self.row_bytes)
        packed = b.split(f"{self.prefix}codes", code_sizes, len(self.classes))
        entries = self.parts(f"{self.prefix}codebook", [row_class.entries for row_class in self.classes])
        per_row = [row_class.scales for row_class in self.classes]
        scales = self.parts(b.cast(f"{self.prefix}row_scale", onnx.TensorProto.FLOAT), per_row)
        levels = [
            self.levels(row_class, self.codes(row_class, part), *tables)
            for row_class, part, *tables in zip(self.classes, packed, entries, scales, strict=True)
        ]
        stored = b.op("Concat", *levels, axis=0)
        row_class = b.cast(b.filled(f"{self.prefix}row_class", self.rows, 0, np.uint8), onnx.TensorProto.INT64)
        # Class first, then original order: both sorts are of different keys.
        keys = b.op("Add", b.op("Mul", row_class, self.rows), self.range(self.rows))
        position = b.argsort(b.argsort(keys, self.rows), self.rows)
        if rows is not None:
            position = b.op("Gather", position, rows)
        weight = b.op("Gather", stored, position)
        scale = b.filled(f"{self.prefix}column_scale", self.columns, 1, np.float16)
        return b.op("Mul", weight, b.cast(scale, onnx.TensorProto.FLOAT))

    def bias(self) -> str:
        """float32 `[N]`."""
        return self.body.filled(f"{self.prefix}bias", self.rows, 0, np.float32)


def lut_functions(
    classes: Iterable[int], codebook: npt.DTypeLike, operators: Iterable[Operator] = OPERATORS.values()
) -> list[onnx.FunctionProto]:
    """The functions for a model that uses these row classes, this codebook type, and these operators.

    Only the classes that occur are written out: an inlined function costs nodes, and loading time, for each of them.

    Args:
        classes: the row classes that any packed linear of the model has.
        codebook: `np.int8` or `np.float16`, the same for the whole model.
        operators: what its nodes are.
    """
    written = {LUT_MATMUL: _lut_matmul, LUT_SWIGLU: _lut_swiglu, LUT_GATHER: _lut_gather, LUT_MOE: _lut_moe}
    needed = set(operators)
    if LUT_SWIGLU in needed:
        needed.add(LUT_MATMUL)  # which its function calls
    classes = sorted(set(classes))
    return [write(classes, codebook) for operator, write in written.items() if operator in needed]


def _function(body: _Body, operator: Operator, output: str) -> onnx.FunctionProto:
    return body.function(operator.name, list(operator.inputs), output, [a.name for a in operator.attributes])


def _lut_matmul(classes: list[int], codebook: npt.DTypeLike) -> onnx.FunctionProto:
    b = _Body()
    weight = _Weight(b, classes, codebook)
    dense = weight.dense()
    x = b.cast("X", onnx.TensorProto.FLOAT)
    y = b.op("MatMul", x, b.op("Transpose", dense, perm=[1, 0]))
    y = b.op("Add", y, weight.bias())
    return _function(b, LUT_MATMUL, b.op("CastLike", y, "X"))


def _lut_swiglu(classes: list[int], codebook: npt.DTypeLike) -> onnx.FunctionProto:
    b = _Body()
    products = []
    for prefix in LUT_SWIGLU.prefixes:
        product = b.op("LutMatMul", "X", *(f"{prefix}{name}" for name in PackedLinear.TENSORS), domain=DOMAIN)
        for name in ("version", "N", "K"):
            b.refer(name, onnx.AttributeProto.INT, name)
        b.refer("rows_per_class", onnx.AttributeProto.INTS, f"{prefix}rows_per_class")
        products.append(product)
    gate, up = products
    return _function(b, LUT_SWIGLU, b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up))


def _lut_gather(classes: list[int], codebook: npt.DTypeLike) -> onnx.FunctionProto:
    b = _Body()
    rows = _Weight(b, classes, codebook).dense(rows="ids")
    return _function(b, LUT_GATHER, b.attribute("dtype", onnx.AttributeProto.INT, "Cast", "to", rows))


def _lut_moe(classes: list[int], codebook: npt.DTypeLike) -> onnx.FunctionProto:
    """All experts see all tokens; what a token was not given has a share of 0."""
    b = _Body()
    experts, inner, hidden = b.integer("experts"), b.integer("N"), b.integer("K")
    shapes = dict.fromkeys(("gate_", "up_"), (b.op("Mul", experts, inner), hidden))
    shapes["down_"] = b.op("Mul", experts, hidden), inner
    weights = {p: _Weight(b, classes, codebook, prefix=p, shape=shape) for p, shape in shapes.items()}
    any_count = b.constant([-1])

    def of_experts(part: str, rows: str, columns: str) -> tuple[str, str]:
        """Weight, transposed, and bias of each expert, `[E, columns, rows]` and `[E, 1, rows]`."""
        weight = b.op("Reshape", weights[part].dense(), b.op("Concat", experts, rows, columns, axis=0))
        bias = b.op("Reshape", weights[part].bias(), b.op("Concat", experts, b.constant([1]), rows, axis=0))
        return b.op("Transpose", weight, perm=[0, 2, 1]), bias

    x = b.op("Reshape", b.cast("X", onnx.TensorProto.FLOAT), b.op("Concat", any_count, hidden, axis=0))
    products = {}
    for part in ("gate_", "up_"):
        weight, bias = of_experts(part, inner, hidden)
        products[part] = b.op("Add", b.op("MatMul", x, weight), bias)  # [E, T, N]
    gate, up = _gated(b, products["gate_"], products["up_"])
    gated = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
    weight, bias = of_experts("down_", hidden, inner)
    results = b.op("Add", b.op("MatMul", gated, weight), bias)  # [E, T, K]

    per_token = b.op("Concat", any_count, b.integer("per_token"), axis=0)
    chosen = b.op("Reshape", "experts", per_token)
    shares = b.op("Reshape", b.cast("shares", onnx.TensorProto.FLOAT), per_token)
    tokens = b.op("Gather", b.op("Shape", x), b.constant([0]))
    nothing = b.op("ConstantOfShape", b.op("Concat", tokens, experts, axis=0))
    by_expert = b.op("ScatterElements", nothing, chosen, shares, axis=1, reduction="add")  # [T, E]
    by_expert = b.op("Unsqueeze", b.op("Transpose", by_expert, perm=[1, 0]), b.constant([2]))
    y = b.op("ReduceSum", b.op("Mul", results, by_expert), b.constant([0]), keepdims=0)
    y = b.op("Reshape", b.op("CastLike", y, "X"), b.op("Shape", "X"))
    return _function(b, LUT_MOE, y)


def _gated(b: _Body, gate: str, up: str) -> tuple[str, str]:
    """Gate and up, or with the clamped gating those whose SwiGLU is what it means."""
    alpha, limit, one = (b.constant(value, np.float32) for value in (CLAMPED_ALPHA, CLAMPED_LIMIT, 1))
    clamped_gate = b.op("Mul", b.op("Min", gate, limit), alpha)
    clamped_up = b.op("Div", b.op("Add", b.op("Clip", up, b.constant(-CLAMPED_LIMIT, np.float32), limit), one), alpha)
    is_clamped = b.op("Equal", b.integer("gating"), b.constant([CLAMPED_SWIGLU]))
    return b.op("Where", is_clamped, clamped_gate, gate), b.op("Where", is_clamped, clamped_up, up)
