"""Graphs that choose their rotary tables by the length of the text, as LongRoPE does.

onnxruntime-genai's model builder writes an If node for it, whose condition is that the attention mask is longer than
a constant. That mask counts, so zeros at its end ask for the tables of long texts.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from skim_runtime.errors import UserError
from skim_runtime.onnx_file import OnnxGraph

__all__ = ["rotary_switch"]

INT64 = 7  # as ONNX numbers types
INT64_BYTES = 8


def rotary_switch(file: Path, graph: OnnxGraph) -> int | None:
    """The longest text with the first tables; None if the graph has only one kind.

    Raises:
        UserError: the graph has an If node for something else.
    """
    conditions = {node.input[0] for node in graph.nodes if node.op_type == "If"}
    if not conditions:
        return None
    producers = {output: node for node in graph.nodes for output in node.output}
    found = {_bound(graph, producers, condition) for condition in conditions}
    bound = found.pop()
    if found or bound is None:
        raise UserError(
            f"{file}: has an If node; the one that is known chooses rotary tables by whether the text is longer than "
            "a constant"
        )
    return bound


def _bound(graph: OnnxGraph, producers: dict[str, Any], condition: str) -> int | None:
    """The constant that something is compared with."""
    greater = producers.get(condition)
    if greater is None or greater.op_type != "Greater":
        return None
    name = greater.input[1]
    content = graph.initializers[name].content if name in graph.initializers else _constant(producers.get(name))
    return struct.unpack("<q", content)[0] if len(content) == INT64_BYTES else None


def _constant(node: Any) -> bytes:
    """The bytes of a Constant node's int64; none if it is something else."""
    if node is None or node.op_type != "Constant":
        return b""
    found: bytes = b"".join(one.t.raw_data for one in node.attribute if one.t.data_type == INT64)
    return found
