"""The operators of the domain ai.skim, for all that write or read their nodes.

- `schema.py`: which operators there are, their inputs and attributes; what a writer gives a node.
- `node.py`: the one parser, from a node of a graph to its packed linears.
"""

from skim_runtime.operators.node import PackedNode, PackedWeights, parse_node, parse_proto
from skim_runtime.operators.schema import (
    ACCURACY_LEVEL,
    CLAMPED_SWIGLU,
    CLASSES,
    CLASSES_BY_VERSION,
    DOMAIN,
    FLOATS,
    FORMAT_VERSION,
    INTEGER_ACCURACY,
    LUT_GATHER,
    LUT_MATMUL,
    LUT_MOE,
    LUT_SWIGLU,
    OPERATORS,
    PLAIN_CLASSES,
    SWIGLU,
    TENSORS,
    Attribute,
    Operator,
    PackedSizes,
    tensor_names,
)

__all__ = [
    "ACCURACY_LEVEL",
    "CLAMPED_SWIGLU",
    "CLASSES",
    "CLASSES_BY_VERSION",
    "DOMAIN",
    "FLOATS",
    "FORMAT_VERSION",
    "INTEGER_ACCURACY",
    "LUT_GATHER",
    "LUT_MATMUL",
    "LUT_MOE",
    "LUT_SWIGLU",
    "OPERATORS",
    "PLAIN_CLASSES",
    "SWIGLU",
    "TENSORS",
    "Attribute",
    "Operator",
    "PackedNode",
    "PackedSizes",
    "PackedWeights",
    "parse_node",
    "parse_proto",
    "tensor_names",
]
