"""The packed linears of a graph as Relax sees them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx
from tvm import relax

from relax_model.parameters import Derivation, Parameters
from skim_export.bundle.abi import Kernels, Product
from skim_export.bundle.kernels.compile import compile_kernels
from skim_export.bundle.target import CpuTarget
from skim_export.graph.reader import load
from skim_export.packed import PackedLinear
from skim_runtime.operators import LUT_GATHER, parse_proto

__all__ = ["PackedOperand", "kernels_for", "packed_operands"]


@dataclass(frozen=True)
class PackedOperand:
    """A packed linear in Relax.

    Attributes:
        linear: its sizes and row classes; its tensors are not looked at.
        integer: whether it is multiplied in integers.
        codes: variable of the codes, uint8 as stored.
        codebook: of the codebooks, int8 or float16 as stored.
        row_scale: of scales and offsets, float32 in the order that is stored.
        row_index: of the original row of each stored one, int32 `[N]`.
        column_scale: float32 `[K]`.
        bias: float32 `[N]`, or None.
        stored_row: int32 `[N]`, the inverse of row_index, if rows are gathered; otherwise None.
    """

    linear: PackedLinear
    integer: bool
    codes: relax.Var
    codebook: relax.Var
    row_scale: relax.Var
    row_index: relax.Var
    column_scale: relax.Var
    bias: relax.Var | None
    stored_row: relax.Var | None

    @property
    def products(self) -> list[Product]:
        """What kernels multiply, one class after the other."""
        size = (self.linear.out_features, self.linear.in_features)
        return [Product(section.row_class, self.integer, *size) for section in self.linear.sections()]

    @property
    def row_counts(self) -> list[relax.Expr]:
        """Rows of each class that there is."""
        return [relax.prim_value(section.count) for section in self.linear.sections()]


def packed_operands(node: onnx.NodeProto, parameters: Parameters) -> list[PackedOperand]:
    """The packed linears of a node of our domain: one, or gate and up of a `LutSwiglu`.

    Raises:
        UserError: the node is not what the operators' schema says.
        PackedFormatError: a tensor violates the format.
    """
    packed_node = parse_proto(node, parameters.tensors)
    gathered = packed_node.operator == LUT_GATHER
    operands = []
    for weights in packed_node.operands:
        packed, source, variable = load(weights), weights.sources, parameters.variable
        rows, columns = (packed.out_features,), (packed.in_features,)
        column_scale: Derivation = "float32" if packed.column_scale.size else "ones"
        operand = PackedOperand(
            linear=packed,
            integer=weights.integer,
            codes=variable(source["codes"]),
            codebook=variable(source["codebook"]),
            row_scale=variable(source["row_scale"], "float32"),
            row_index=variable(source["row_class"], "row_index", rows),
            column_scale=variable(source["column_scale"], column_scale, columns),
            bias=variable(source["bias"]) if packed.bias.size else None,
            stored_row=variable(source["row_class"], "stored_row", rows) if gathered else None,
        )
        operands.append(operand)
    return operands


def kernels_for(operands: Iterable[PackedOperand], target: CpuTarget) -> Kernels:
    """Compile the kernels that products with packed linears, and gathering rows of them, need.

    Raises:
        UserError: the target's file is wrong, or TVM does not accept it.
    """
    operands = list(operands)
    products = {product for packed in operands if packed.stored_row is None for product in packed.products}
    gathers = {product.row_class for packed in operands if packed.stored_row is not None for product in packed.products}
    return compile_kernels(sorted(products), sorted(gathers), target)
