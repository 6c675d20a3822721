"""Reading the packed linears back out of an ONNX model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from skim_export.packed import PackedLinear
from skim_runtime.operators import DOMAIN, PackedNode, PackedWeights, parse_node

__all__ = ["load", "packed_node", "read_packed"]


def packed_node(node: ir.Node) -> PackedNode[ir.TensorProtocol]:
    """What a node of our domain says of its packed linears.

    Raises:
        UserError: the node is not what the operators' schema says.
    """
    values = [value for value in node.inputs if value is not None]
    initializers = {value.name or "": value.const_value for value in values if value.const_value is not None}
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    inputs = ["" if value is None else value.name or "" for value in node.inputs]
    return parse_node(node.op_type, node.name or "", inputs, attributes, initializers)


def load(weights: PackedWeights[Any]) -> PackedLinear:
    """A packed linear of a graph with all its tensors.

    Raises:
        PackedFormatError: a tensor violates the format.
    """
    arrays = {name: np.asarray(tensor) for name, tensor in weights.tensors.items()}
    packed = PackedLinear(weights.out_features, weights.in_features, weights.rows_per_class, **arrays)
    packed.validate()
    return packed


def read_packed(path: Path) -> dict[str, PackedLinear]:
    """The packed linears of a model by name, e.g. "model.layers.0.attn.qkv_proj"; a tied head is its embedding's.

    Raises:
        UserError: a node is not what the operators' schema says.
        PackedFormatError: a tensor violates the format.
    """
    nodes = [packed_node(node) for node in ir.load(path).graph if node.domain == DOMAIN]
    return {weights.name: load(weights) for node in nodes for weights in node.operands}
