"""ONNX files by protobuf alone, read without their weights: the package onnx is not needed to run a model."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.descriptor_pb2 import (  # type: ignore[import-untyped]
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from google.protobuf.message_factory import GetMessageClass  # type: ignore[import-untyped]

from skim_runtime.errors import UserError

__all__ = ["ElementType", "ModelProto", "OnnxGraph", "Tensor"]

INTEGER, STRING = FieldDescriptorProto.TYPE_INT64, FieldDescriptorProto.TYPE_STRING
# The part of onnx.proto that is read or written: name, number and type of fields, in a list if they are repeated. The
# others, such as the weights in the file itself, are passed over.
MESSAGES: dict[str, list[tuple[str, int, Any]]] = {
    "ModelProto": [("ir_version", 1, INTEGER), ("graph", 7, "GraphProto"), ("opset_import", 8, ["OperatorSetIdProto"])],
    "OperatorSetIdProto": [("domain", 1, STRING), ("version", 2, INTEGER)],
    "GraphProto": [
        ("node", 1, ["NodeProto"]),
        ("name", 2, STRING),
        ("initializer", 5, ["TensorProto"]),
        ("input", 11, ["ValueInfoProto"]),
        ("output", 12, ["ValueInfoProto"]),
    ],
    "NodeProto": [
        ("input", 1, [STRING]),
        ("output", 2, [STRING]),
        ("name", 3, STRING),
        ("op_type", 4, STRING),
        ("attribute", 5, ["AttributeProto"]),
        ("domain", 7, STRING),
    ],
    "AttributeProto": [("name", 1, STRING), ("i", 3, INTEGER), ("ints", 8, [INTEGER]), ("type", 20, INTEGER)],
    "TensorProto": [
        ("dims", 1, [INTEGER]),
        ("data_type", 2, INTEGER),
        ("name", 8, STRING),
        ("external_data", 13, ["StringStringEntryProto"]),
    ],
    "ValueInfoProto": [("name", 1, STRING), ("type", 2, "TypeProto")],
    "TypeProto": [("tensor_type", 1, "TensorTypeProto")],
    "TensorTypeProto": [("elem_type", 1, INTEGER), ("shape", 2, "TensorShapeProto")],
    "TensorShapeProto": [("dim", 1, ["DimensionProto"])],
    "DimensionProto": [("dim_param", 2, STRING)],
    "StringStringEntryProto": [("key", 1, STRING), ("value", 2, STRING)],
}


class ElementType(NamedTuple):
    """Of the elements of a tensor."""

    name: str
    bits: int


# By their number in onnx.TensorProto.DataType.
ELEMENT_TYPES = {
    1: ElementType("float32", 32),
    2: ElementType("uint8", 8),
    3: ElementType("int8", 8),
    4: ElementType("uint16", 16),
    5: ElementType("int16", 16),
    6: ElementType("int32", 32),
    7: ElementType("int64", 64),
    9: ElementType("bool", 8),
    10: ElementType("float16", 16),
    11: ElementType("float64", 64),
    12: ElementType("uint32", 32),
    13: ElementType("uint64", 64),
    16: ElementType("bfloat16", 16),
    21: ElementType("uint4", 4),
    22: ElementType("int4", 4),
}
OTHER = ElementType("another type", 0)


@dataclass(frozen=True)
class Tensor:
    """An initializer, without its elements.

    Attributes:
        name: of the value.
        dtype: of its elements.
        size: number of elements.
        nbytes: what they take.
    """

    name: str
    dtype: ElementType
    size: int
    nbytes: int


@dataclass(frozen=True)
class OnnxGraph:
    """The graph of an ONNX file.

    Attributes:
        nodes: messages with the fields of `onnx.NodeProto`.
        initializers: by name.
        outputs: names of its outputs.
    """

    nodes: Sequence[Any]
    initializers: dict[str, Tensor]
    outputs: list[str]

    @classmethod
    def read(cls, file: Path) -> OnnxGraph:
        """Parse `file` without its external data, whose files are only checked for their size.

        Raises:
            UserError: `file` is not an ONNX model, or its external data is missing or too short.
        """
        try:
            graph = ModelProto.FromString(file.read_bytes()).graph
        except DecodeError:
            raise UserError(f"{file}: not an ONNX file") from None
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from None
        if not graph.node:
            raise UserError(f"{file}: not an ONNX file, or one without a graph")
        _check_external_data(file, graph.initializer)
        tensors = [_tensor(file, message) for message in graph.initializer]
        return cls(graph.node, {tensor.name: tensor for tensor in tensors}, [output.name for output in graph.output])


def _model_class() -> Any:
    """The class of `ModelProto`, in a pool of its own: the package onnx may be there, too."""
    file = FileDescriptorProto(name="skim_runtime/onnx.proto", package="onnx", syntax="proto2")
    file.message_type.extend(_descriptor(name, fields) for name, fields in MESSAGES.items())
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("onnx.ModelProto"))


def _descriptor(name: str, fields: list[tuple[str, int, Any]]) -> Any:
    message = DescriptorProto(name=name)
    for field, number, kind in fields:
        repeated = isinstance(kind, list)
        label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
        kind = kind[0] if repeated else kind
        described = message.field.add(name=field, number=number, label=label)
        if isinstance(kind, str):
            described.type, described.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".onnx.{kind}"
        else:
            described.type = kind
    return message


ModelProto = _model_class()


def _external_data(tensor: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _tensor(file: Path, message: Any) -> Tensor:
    dtype, size = ELEMENT_TYPES.get(message.data_type, OTHER), math.prod(message.dims)
    if min(message.dims, default=0) < 0:
        raise UserError(f"{file}: {message.name}: has a size of {list(message.dims)}")
    length = _number(file, message, "length")
    return Tensor(message.name, dtype, size, -(-size * dtype.bits // 8) if length is None else length)


def _offset(file: Path, message: Any) -> int:
    return _number(file, message, "offset") or 0


def _number(file: Path, message: Any, key: str) -> int | None:
    """Of bytes, from what is said of external data."""
    text = _external_data(message).get(key)
    if text is not None and not re.fullmatch("[0-9]{1,18}", text):
        raise UserError(f"{file}: {message.name}: its {key} must be a number of bytes, is {text!r}")
    return None if text is None else int(text)


def _check_external_data(file: Path, initializers: Sequence[Any]) -> None:
    needed: dict[str, int] = {}
    for tensor in initializers:
        external = _external_data(tensor)
        if external:
            location = external.get("location", "")
            if not location or Path(location).name != location:
                raise UserError(f"{file}: {tensor.name}: its data must be in a file beside, not in {location!r}")
            needed[location] = max(_offset(file, tensor) + _tensor(file, tensor).nbytes, needed.get(location, 0))
    for location, size in needed.items():
        data = file.parent / location
        if not data.is_file():
            raise UserError(f"{data}: missing; {file.name} keeps its weights there, so both must lie in one directory")
        if data.stat().st_size < size:
            raise UserError(f"{data}: truncated: {data.stat().st_size} bytes, but {file.name} needs {size}")
