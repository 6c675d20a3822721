"""`LutMatMul` and `LutGather` written in standard operators, as functions that travel inside the model.

A stock ONNX Runtime inlines them, so the model runs (slowly) where our library is missing. They follow docs/format.md;
the place of every bit is taken from `skim_export.packed.FIELDS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from skim_export.packed import COLUMNS, FIELDS, LANES, Field, LevelKind, PackedLinear, class_bits, class_kind

__all__ = ["DOMAIN", "OPSET", "WEIGHT_INPUTS", "lut_functions"]

DOMAIN = "ai.skim"
OPSET = 22  # that of the decoder graph: a function must not import another one
WEIGHT_INPUTS = list(PackedLinear.TENSORS)


class _Body:
    """The nodes of a function under construction; every operator returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def op(self, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        output = f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], domain=domain, **attributes))
        return output

    def attribute(
        self, name: str, kind: onnx.AttributeProto.AttributeType, op_type: str, field: str, *inputs: str
    ) -> str:
        """A node whose attribute `field` is the function's attribute `name`."""
        output = self.op(op_type, *inputs)
        reference = onnx.AttributeProto(name=field, ref_attr_name=name, type=kind)
        self.nodes[-1].attribute.append(reference)
        return output

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        return self.op("Constant", value=numpy_helper.from_array(np.asarray(value, dtype)))

    def cast(self, value: str, dtype: int) -> str:
        return self.op("Cast", value, to=dtype)

    def slice(self, value: str, start: str, size: str, axis: int = 0) -> str:
        return self.op("Slice", value, start, self.op("Add", start, size), self.constant([axis]))

    def reshape(self, value: str, *shape: str) -> str:
        """Reshape where a size may be 0; the sizes are tensors of one element."""
        return self.op("Reshape", value, self.op("Concat", *shape, axis=0), allowzero=1)

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


def _code_sets(fields: list[Field]) -> Iterator[tuple[list[Field], ...]]:
    """Split the fields into sets of codes that are put together in the same way; each yields its planes."""
    planes: dict[tuple[int, int], list[Field]] = {}
    for f in fields:
        planes.setdefault((f.code_bit, f.length), []).append(f)
    by_codes = sorted(planes.values(), key=lambda plane: [f.code for f in plane])
    for _, group in groupby(by_codes, key=lambda plane: [f.code for f in plane]):
        yield tuple(group)


def _unpack_function(bits: int) -> onnx.FunctionProto:
    """Vectors `[R, S, bits, W]` to codes `[R, S, 8, W]`, uint8."""
    body = _Body()
    parts = []
    for planes in _code_sets(FIELDS[bits]):
        code = ""
        for plane in planes:
            value = body.op("Gather", "V", body.constant([f.vector for f in plane]), axis=2)
            shifts = body.constant(np.array([f.bit for f in plane]).reshape(1, 1, -1, 1), np.uint8)
            value = body.op("BitShift", value, shifts, direction="RIGHT")
            value = body.op("BitwiseAnd", value, body.constant((1 << plane[0].length) - 1, np.uint8))
            value = body.op("BitShift", value, body.constant(plane[0].code_bit, np.uint8), direction="LEFT")
            code = body.op("BitwiseOr", code, value) if code else value
        parts.append(code)
    codes = body.op("Concat", *parts, axis=2)
    return body.function(f"Unpack{bits}", ["V"], codes, [])


class _Weight:
    """Emits the nodes that rebuild the stored rows of W, class by class."""

    def __init__(self, body: _Body, codebook: npt.DTypeLike) -> None:
        self.body = body
        self.int8 = np.dtype(codebook) == np.int8
        b = body
        ints = onnx.AttributeProto.INTS
        integer = onnx.AttributeProto.INT
        one = b.constant([1])
        self.rows = b.reshape(b.attribute("N", integer, "Constant", "value_int"), one)
        self.columns = b.reshape(b.attribute("K", integer, "Constant", "value_int"), one)
        self.counts = b.attribute("rows_per_class", ints, "Constant", "value_ints")
        self.full = b.op("Div", self.columns, b.constant([COLUMNS]))
        rest = b.op("Sub", self.columns, b.op("Mul", self.full, b.constant([COLUMNS])))
        padded = b.op("Add", rest, b.constant([31]))
        self.tail_lanes = b.op("Mul", b.op("Div", padded, b.constant([32])), b.constant([4]))
        self.code_at = self.entry_at = self.scale_at = b.constant([0])

    def codes(self, bits: int, count: str) -> str:
        """The codes of the next `count` stored rows, `[count, K]`."""
        b = self.body
        width = b.constant([bits])
        full_size = b.op("Mul", self.full, b.constant([bits * LANES]))
        tail_size = b.op("Mul", self.tail_lanes, width)
        row_size = b.op("Add", full_size, tail_size)
        size = b.op("Mul", count, row_size)
        rows = b.reshape(b.slice("codes", self.code_at, size), count, row_size)
        self.code_at = b.op("Add", self.code_at, size)
        zero, one, eight = b.constant([0]), b.constant([1]), b.constant([8])
        parts = []
        for start, part, blocks, lanes in (
            (zero, full_size, self.full, b.constant([LANES])),
            (full_size, tail_size, one, self.tail_lanes),
        ):
            vectors = b.reshape(b.slice(rows, start, part, axis=1), count, blocks, width, lanes)
            codes = b.op(f"Unpack{bits}", vectors, domain=DOMAIN)
            parts.append(b.reshape(codes, count, b.op("Mul", b.op("Mul", blocks, eight), lanes)))
        return b.slice(b.op("Concat", *parts, axis=1), zero, self.columns, axis=1)

    def scales(self, count: str, per_row: int) -> str:
        b = self.body
        size = b.op("Mul", count, b.constant([per_row]))
        scales = b.reshape(b.slice("row_scale", self.scale_at, size), count, b.constant([per_row]))
        self.scale_at = b.op("Add", self.scale_at, size)
        return b.cast(scales, onnx.TensorProto.FLOAT)

    def rows_of_class(self, cls: int) -> str:
        """The weights (before the column scale) of the rows of one class, float32 `[count, K]`."""
        b = self.body
        bits = class_bits(cls)
        count = b.slice(self.counts, b.constant([cls]), b.constant([1]))
        codes = self.codes(bits, count)
        if class_kind(cls) == LevelKind.AFFINE:
            scale_offset = self.scales(count, 2)
            zero, one = b.constant([0]), b.constant([1])
            steps = b.op("Sub", b.cast(codes, onnx.TensorProto.FLOAT), b.constant(1 << (bits - 1), np.float32))
            scaled = b.op("Mul", b.slice(scale_offset, zero, one, axis=1), steps)
            return b.op("Add", b.slice(scale_offset, one, one, axis=1), scaled)
        entries = b.constant([1 << bits])
        size = b.op("Mul", count, entries)
        levels = b.reshape(b.slice("codebook", self.entry_at, size), count, entries)
        self.entry_at = b.op("Add", self.entry_at, size)
        levels = b.cast(levels, onnx.TensorProto.FLOAT)
        if self.int8:
            levels = b.op("Mul", levels, self.scales(count, 1))
        return b.op("GatherElements", levels, b.cast(codes, onnx.TensorProto.INT32), axis=1)

    def dense(self, classes: list[int], rows: str | None = None) -> str:
        """W in original row order, float32 `[N, K]`, or only its rows `rows`."""
        b = self.body
        stored = b.op("Concat", *(self.rows_of_class(c) for c in classes), axis=0)
        zero, one = b.constant([0]), b.constant([1])
        scalar = b.constant([], np.int64)
        count = b.op("Reshape", self.rows, scalar)
        index = b.op("Range", b.op("Reshape", zero, scalar), count, b.op("Reshape", one, scalar))
        row_class = b.cast(b.filled("row_class", self.rows, 0, np.uint8), onnx.TensorProto.INT64)
        keys = b.op("Add", b.op("Mul", row_class, self.rows), index)  # class first, then original order
        position = b.argsort(b.argsort(keys, self.rows), self.rows)
        if rows is not None:
            position = b.op("Gather", position, rows, axis=0)
        weight = b.op("Gather", stored, position, axis=0)
        scale = b.cast(b.filled("column_scale", self.columns, 1, np.float16), onnx.TensorProto.FLOAT)
        return b.op("Mul", weight, scale)


def lut_functions(classes: Iterable[int], codebook: npt.DTypeLike) -> list[onnx.FunctionProto]:
    """The functions for a model that uses these row classes and this codebook type.

    Only the classes that occur are written out: an inlined function costs nodes for each of them.

    Args:
        classes: the row classes (0..15) that any packed linear of the model has.
        codebook: `np.int8` or `np.float16`, the same for the whole model.
    """
    classes = sorted(set(classes))
    attributes = ["version", "N", "K", "rows_per_class"]

    matmul = _Body()
    weight = _Weight(matmul, codebook)
    dense = weight.dense(classes)
    x = matmul.cast("X", onnx.TensorProto.FLOAT)
    y = matmul.op("MatMul", x, matmul.op("Transpose", dense, perm=[1, 0]))
    y = matmul.op("Add", y, matmul.filled("bias", weight.rows, 0, np.float32))
    lut_matmul = matmul.function("LutMatMul", ["X", *WEIGHT_INPUTS], matmul.op("CastLike", y, "X"), attributes)

    gather = _Body()
    rows = _Weight(gather, codebook).dense(classes, rows="ids")
    output = gather.attribute("dtype", onnx.AttributeProto.INT, "Cast", "to", rows)
    lut_gather = gather.function("LutGather", ["ids", *WEIGHT_INPUTS], output, [*attributes, "dtype"])

    unpack = [_unpack_function(bits) for bits in sorted({class_bits(c) for c in classes})]
    return [*unpack, lut_matmul, lut_gather]
