"""Reading the packed linears back out of an ONNX model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from skim_export.graph.function import DOMAIN, WEIGHT_INPUTS
from skim_export.packed import PackedLinear

MOST_INTEGER_COLUMNS = 65536

__all__ = ["PackedWeights", "packed_weights", "read_packed"]


@dataclass(frozen=True)
class PackedWeights:
    """A packed linear in a graph, whose tensors stay in the file until they are asked for.

    Attributes:
        unit: its name, e.g. "model.layers.0.attn.qkv_proj"; a tied head is its embedding's.
        out_features: N.
        in_features: K.
        rows_per_class: counts of rows.
        tensors: the tensors of the packed format by name.
    """

    unit: str
    out_features: int
    in_features: int
    rows_per_class: tuple[int, ...]
    tensors: dict[str, ir.TensorProtocol]

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """One of the tensors."""
        return np.asarray(self.tensors[name].numpy())

    @property
    def has_integer_arithmetic(self) -> bool:
        """Whether it can be multiplied in integers (docs/format.md, "Arithmetic")."""
        codebook = self.tensors["codebook"]
        return self.in_features <= MOST_INTEGER_COLUMNS and (codebook.size == 0 or codebook.dtype == ir.DataType.INT8)

    def load(self) -> PackedLinear:
        """All tensors.

        Raises:
            PackedFormatError: a tensor violates the format.
        """
        arrays = {name: self.tensor(name) for name in WEIGHT_INPUTS}
        packed = PackedLinear(self.out_features, self.in_features, self.rows_per_class, **arrays)
        packed.validate()
        return packed


def packed_weights(node: ir.Node) -> list[PackedWeights]:
    """The packed linears of a node of our domain: one, or gate and up of a `LutSwiglu`."""
    prefixes = ["gate_", "up_"] if node.op_type == "LutSwiglu" else [""]
    found = []
    for i, prefix in enumerate(prefixes):
        first = 1 + i * len(WEIGHT_INPUTS)
        values = [value for value in node.inputs[first : first + len(WEIGHT_INPUTS)] if value is not None]
        tensors = [value.const_value for value in values if value.const_value is not None]
        weights = PackedWeights(
            unit=(values[0].name or "").removesuffix(f".{WEIGHT_INPUTS[0]}"),
            out_features=node.attributes["N"].as_int(),
            in_features=node.attributes["K"].as_int(),
            rows_per_class=tuple(node.attributes[f"{prefix}rows_per_class"].as_ints()),
            tensors=dict(zip(WEIGHT_INPUTS, tensors, strict=True)),
        )
        found.append(weights)
    return found


def read_packed(path: Path) -> dict[str, PackedLinear]:
    """The packed linears of a model by unit, e.g. "model.layers.0.attn.qkv_proj"; a tied head is its embedding's.

    Raises:
        PackedFormatError: a tensor violates the format.
    """
    nodes = [node for node in ir.load(path).graph if node.domain == DOMAIN]
    return {weights.unit: weights.load() for node in nodes for weights in packed_weights(node)}
