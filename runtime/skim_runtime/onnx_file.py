"""ONNX files by protobuf alone, without weights that lie beside: the package onnx is not needed to run a model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
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
from skim_runtime.model_files import is_file_name

__all__ = ["ElementType", "ModelProto", "OnnxGraph", "Tensor"]

INTEGER, STRING = FieldDescriptorProto.TYPE_INT64, FieldDescriptorProto.TYPE_STRING
BYTES = FieldDescriptorProto.TYPE_BYTES
# The part of onnx.proto that is read or written: name, number and type of fields, in a list if they are repeated. The
# others are passed over.
MESSAGES: dict[str, list[tuple[str, int, Any]]] = {
    "ModelProto": [
        ("ir_version", 1, INTEGER),
        ("graph", 7, "GraphProto"),
        ("opset_import", 8, ["OperatorSetIdProto"]),
        ("metadata_props", 14, ["StringStringEntryProto"]),
    ],
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
        ("raw_data", 9, BYTES),
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
    """An initializer.

    Attributes:
        name: of the value.
        dtype: of its elements.
        rank: number of dimensions.
        size: number of elements.
        nbytes: what they take.
        location: name of the file that they are in; None if it is the graph's own.
        offset: where in that file they begin.
        content: the elements themselves, if they are in the graph's own file.
    """

    name: str
    dtype: ElementType
    rank: int
    size: int
    nbytes: int
    location: str | None
    offset: int
    content: bytes


@dataclass(frozen=True)
class OnnxGraph:
    """The graph of an ONNX file.

    Attributes:
        nodes: messages with the fields of `onnx.NodeProto`.
        initializers: by name.
        outputs: names of its outputs.
        metadata: what the file says besides.
    """

    nodes: Sequence[Any]
    initializers: dict[str, Tensor]
    outputs: list[str]
    metadata: dict[str, str]

    @classmethod
    def read(cls, file: Path) -> OnnxGraph:
        """Parse `file` without its external data, whose files are only checked for their size.

        Raises:
            UserError: `file` is not an ONNX model, or its external data is missing or too short.
        """
        try:
            model = ModelProto.FromString(file.read_bytes())
        except DecodeError:
            raise UserError(f"{file}: not an ONNX file") from None
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from None
        graph = model.graph
        if not graph.node:
            raise UserError(f"{file}: not an ONNX file, or one without a graph")
        tensors = {message.name: _tensor(file, message) for message in graph.initializer}
        _check_external_data(file, tensors)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        return cls(graph.node, tensors, [output.name for output in graph.output], metadata)


def _model_class() -> Any:
    """The class of `ModelProto`, in a pool of its own: the package onnx may be there, too."""
    # ONNX is proto2; as proto3, texts that are no UTF-8 are refused.
    file = FileDescriptorProto(name="skim_runtime/onnx.proto", package="onnx", syntax="proto3")
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


def _tensor(file: Path, message: Any) -> Tensor:
    dtype, size = ELEMENT_TYPES.get(message.data_type, OTHER), math.prod(message.dims)
    if min(message.dims, default=0) < 0:
        raise UserError(f"{file}: {message.name}: has a size of {list(message.dims)}")
    nbytes = -(-size * dtype.bits // 8)
    external = {entry.key: entry.value for entry in message.external_data}
    if not external:
        return Tensor(message.name, dtype, len(message.dims), size, nbytes, None, 0, message.raw_data)
    location = external.get("location", "")
    if not is_file_name(location):
        raise UserError(f"{file}: {message.name}: its data must be in a file beside, not in {location!r}")
    numbers = {"offset": 0, "length": nbytes}
    for key in numbers.keys() & external.keys():
        if not re.fullmatch("[0-9]{1,18}", external[key]):
            raise UserError(f"{file}: {message.name}: its {key} must be a number of bytes, is {external[key]!r}")
        numbers[key] = int(external[key])
    return Tensor(message.name, dtype, len(message.dims), size, numbers["length"], location, numbers["offset"], b"")


def _check_external_data(file: Path, tensors: Mapping[str, Tensor]) -> None:
    needed: dict[str, int] = {}
    for tensor in tensors.values():
        if tensor.location is not None:
            needed[tensor.location] = max(tensor.offset + tensor.nbytes, needed.get(tensor.location, 0))
    for location, size in needed.items():
        data = file.parent / location
        if not data.is_file():
            raise UserError(f"{data}: missing; {file.name} keeps its weights there, so both must lie in one directory")
        if data.stat().st_size < size:
            raise UserError(f"{data}: truncated: {data.stat().st_size} bytes, but {file.name} needs {size}")
