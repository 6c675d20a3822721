"""What an exported directory says about its model, read without loading any weight."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from skim_runtime.errors import UserError
from skim_runtime.providers import PROVIDERS

__all__ = ["ModelDirectory"]

DOMAIN = "ai.skim"
PRODUCTS = ("LutMatMul", "LutSwiglu")
# When the operator library takes integer arithmetic: FitsInteger in custom_ops/include/skim/kernels.h, docs/format.md.
INTEGER_ACCURACY = 4
MAX_INTEGER_COLUMNS = 65536
WEIGHT_INPUTS = 6  # of a product for each packed linear, behind the input X; the second is the codebook


@dataclass(frozen=True)
class ModelDirectory:
    """A directory with an ONNX file, its external data, `genai_config.json` and the tokenizer files.

    Attributes:
        path: the directory.
        model_file: the ONNX file in it.
        context_length: positions that the model was made for.
        head_size: channels of an attention head.
        eos_token_ids: tokens that end a text.
        custom_ops_library: what `genai_config.json` names as the operator library, or None.
        provider: the execution provider that the model was exported for, a key of `PROVIDERS`.
    """

    path: Path
    model_file: Path
    context_length: int
    head_size: int
    eos_token_ids: tuple[int, ...]
    custom_ops_library: str | None
    provider: str

    @classmethod
    def open(cls, path: str | Path) -> ModelDirectory:
        """Read `genai_config.json` and check that the ONNX file is there.

        Raises:
            UserError: the directory, `genai_config.json` or the ONNX file is missing, or the second malformed.
        """
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"{path}: not a directory; give the one that skim-export wrote its model into")
        config_file = path / "genai_config.json"
        if not config_file.is_file():
            raise UserError(f"{path}: has no genai_config.json; give a directory that skim-export wrote")
        try:
            model = json.loads(config_file.read_text("utf-8"))["model"]
            eos = model["eos_token_id"]
            options = model["decoder"].get("session_options", {})
            providers = [name for entry in options.get("provider_options", []) for name in entry if name in PROVIDERS]
            directory = cls(
                path=path,
                model_file=path / model["decoder"]["filename"],
                context_length=int(model["context_length"]),
                head_size=int(model["decoder"]["head_size"]),
                eos_token_ids=tuple(eos) if isinstance(eos, list) else (int(eos),),
                custom_ops_library=options.get("custom_ops_library"),
                provider=providers[0] if providers else "cpu",
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"has no entry {error}" if isinstance(error, KeyError) else f"is malformed ({error})"
            raise UserError(f"{config_file}: {reason}; export the model again") from None
        if not directory.model_file.is_file():
            raise UserError(f"{directory.model_file}: missing; give a directory that skim-export wrote")
        return directory

    @cached_property
    def graph(self) -> Graph:
        """What the ONNX file says; raises `UserError` like `Graph.read`."""
        return Graph.read(self.model_file)


@dataclass(frozen=True)
class Graph:
    """What an ONNX file says.

    Attributes:
        has_packed_weights: whether it has products with packed weights, `ai.skim::LutMatMul` or `LutSwiglu` nodes.
        weight_bytes: bytes of packed weights that these read for each generated token.
        arithmetic: with which the operator library multiplies them, "integer arithmetic" or "exact arithmetic", and
            where that is not the same for all, in how many it is exact.
        shared_cache: whether every `present` output comes from a GroupQueryAttention node, which can append to the
            past in place.
    """

    has_packed_weights: bool
    weight_bytes: int
    arithmetic: str
    shared_cache: bool

    @classmethod
    def read(cls, file: Path) -> Graph:
        """Parse `file` without its external data, whose files are only checked for their size.

        Raises:
            UserError: `file` is not an ONNX model, or its external data is missing or too short.
        """
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

        try:
            model = onnx.load(file, load_external_data=False)
        except DecodeError:
            raise UserError(f"{file}: not an ONNX file") from None
        if not model.graph.node:
            raise UserError(f"{file}: not an ONNX file, or one without a graph")
        _check_external_data(file, model)
        sizes = {tensor.name: _tensor_bytes(tensor) for tensor in model.graph.initializer}
        types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        packed = [node for node in model.graph.node if node.domain == DOMAIN and node.op_type in PRODUCTS]
        producers = {output: node.op_type for node in model.graph.node for output in node.output}
        presents = [output.name for output in model.graph.output if output.name.startswith("present.")]
        return cls(
            has_packed_weights=bool(packed),
            weight_bytes=sum(sizes.get(name, 0) for node in packed for name in node.input),
            arithmetic=_arithmetic(packed, sizes, types),
            shared_cache=all(producers[name] == "GroupQueryAttention" for name in presents),
        )


def _arithmetic(nodes: list[Any], sizes: dict[str, int], types: dict[str, int]) -> str:
    import onnx

    def integer(node: Any) -> bool:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        return (
            attributes.get("accuracy_level") == INTEGER_ACCURACY
            and attributes.get("K", 0) <= MAX_INTEGER_COLUMNS
            and all(
                types.get(codebook) == onnx.TensorProto.INT8 or sizes.get(codebook) == 0
                for codebook in node.input[2::WEIGHT_INPUTS]
            )
        )

    exact = sum(not integer(node) for node in nodes)
    if exact == len(nodes):
        return "exact arithmetic"
    return "integer arithmetic" + (f", exact in {exact} of {len(nodes)} products" if exact else "")


def _external_data(tensor: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _tensor_bytes(tensor: Any) -> int:
    import onnx

    length = _external_data(tensor).get("length")
    if length is not None:
        return int(length)
    size: int = math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return size


def _check_external_data(file: Path, model: Any) -> None:
    needed: dict[str, int] = {}
    for tensor in model.graph.initializer:
        external = _external_data(tensor)
        if external:
            end = int(external.get("offset", 0)) + _tensor_bytes(tensor)
            needed[external["location"]] = max(end, needed.get(external["location"], 0))
    for location, size in needed.items():
        data = file.parent / location
        if not data.is_file():
            raise UserError(f"{data}: missing; {file.name} keeps its weights there, so both must lie in one directory")
        if data.stat().st_size < size:
            raise UserError(f"{data}: truncated: {data.stat().st_size} bytes, but {file.name} needs {size}")
