"""Reading the packed linears back out of an ONNX model."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import numpy_helper

from skim_export.graph.function import DOMAIN, WEIGHT_INPUTS
from skim_export.packed import PackedLinear

__all__ = ["read_packed"]


def read_packed(path: Path) -> dict[str, PackedLinear]:
    """The packed linears of a model by unit, e.g. "model.layers.0.attn.qkv_proj"; a tied head is its embedding's.

    Raises:
        PackedFormatError: a tensor violates the format.
    """
    model = onnx.load(path)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    units = {}
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        prefixes = ["gate_", "up_"] if node.op_type == "LutSwiglu" else [""]
        for i, prefix in enumerate(prefixes):
            first = 1 + i * len(WEIGHT_INPUTS)
            names = node.input[first : first + len(WEIGHT_INPUTS)]
            arrays = [numpy_helper.to_array(initializers[name]) for name in names]
            packed = PackedLinear(
                attributes["N"],
                attributes["K"],
                tuple(attributes[f"{prefix}rows_per_class"]),
                **dict(zip(WEIGHT_INPUTS, arrays, strict=True)),
            )
            packed.validate()
            units[names[0].removesuffix(f".{WEIGHT_INPUTS[0]}")] = packed
    return units
