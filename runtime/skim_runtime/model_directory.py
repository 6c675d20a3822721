"""What an exported directory says about its model, read without loading any weight."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from skim_runtime.errors import UserError
from skim_runtime.model_files import is_file_name
from skim_runtime.onnx_file import OnnxGraph
from skim_runtime.operators import DOMAIN, FLOATS, PackedNode, parse_proto
from skim_runtime.providers import PROVIDERS
from skim_runtime.rotary_switch import rotary_switch
from skim_runtime.verification import check_model

__all__ = ["ModelDirectory"]

FLOAT_PRODUCTS = ("MatMul", "FusedMatMul")  # what layers that were excluded from packing become


@dataclass(frozen=True)
class ModelDirectory:
    """A directory with an ONNX file, its external data, `genai_config.json` and the tokenizer files.

    Attributes:
        path: the directory.
        model_file: the ONNX file in it.
        context_length: positions that the model was made for.
        head_size: channels of an attention head.
        vocabulary: tokens that the model knows, V.
        eos_token_ids: tokens that end a text.
        custom_ops_library: what `genai_config.json` names as the operator library, or None; code from whoever made the
            directory, see `own_library`.
        provider: the execution provider that the model was exported for, a key of `PROVIDERS`.
    """

    path: Path
    model_file: Path
    context_length: int
    head_size: int
    vocabulary: int
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
            model = json.loads(config_file.read_bytes())["model"]
            decoder, eos = model["decoder"], model["eos_token_id"]
            options = decoder.get("session_options", {})
            providers = [name for entry in options.get("provider_options", []) for name in entry if name in PROVIDERS]
            directory = cls(
                path=path,
                model_file=path / _file_name("filename", decoder["filename"]),
                context_length=_count("context_length", model["context_length"]),
                head_size=_count("head_size", decoder["head_size"]),
                vocabulary=_count("vocab_size", model["vocab_size"]),
                eos_token_ids=tuple(
                    _count("eos_token_id", one, 0) for one in (eos if isinstance(eos, list) else [eos])
                ),
                custom_ops_library=_text_or_none("custom_ops_library", options.get("custom_ops_library")),
                provider=providers[0] if providers else "cpu",
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"has no entry {error}" if isinstance(error, KeyError) else f"is malformed ({error})"
            raise UserError(f"{config_file}: {reason}; export the model again") from None
        if not directory.model_file.is_file():
            raise UserError(f"{directory.model_file}: missing; give a directory that skim-export wrote")
        return directory

    @property
    def own_library(self) -> Path | None:
        """The operator library that the directory brings, which is to be loaded only if its maker is trusted.

        Raises:
            UserError: it is not a file that lies in the directory itself.
        """
        name = self.custom_ops_library
        if name is None:
            return None
        path = self.path / name
        if not is_file_name(name) or path.is_symlink() or not path.is_file():
            raise UserError(
                f"{self.path / 'genai_config.json'}: custom_ops_library {name!r}: must be a file in the directory"
            )
        return path

    @cached_property
    def graph(self) -> Graph:
        """What the ONNX file says; raises `UserError` like `Graph.read`."""
        return Graph.read(self.model_file)


@dataclass(frozen=True)
class Graph:
    """What an ONNX file says.

    Attributes:
        has_packed_weights: whether it has products with packed weights.
        weight_bytes: bytes of weights that these, and products with the matrices that are not packed beside them, read
            for each generated token; 0 if it has none with packed weights.
        arithmetic: with which the operator library multiplies them, "integer arithmetic" or "exact arithmetic", and
            where that is not the same for all, in how many it is exact.
        activations: their type, "float32", "float16" or "bfloat16", as the embedding gives them.
        shared_cache: whether all keys and values come from GroupQueryAttention nodes, which can append to the past in
            place.
        rotary_switch: the longest text with the first of two kinds of rotary tables; None if there is only one.
    """

    has_packed_weights: bool
    weight_bytes: int
    arithmetic: str
    activations: str
    shared_cache: bool
    rotary_switch: int | None

    @classmethod
    def read(cls, file: Path) -> Graph:
        """Parse `file` without its external data, whose files are only checked for their size.

        Raises:
            UserError: `file` is not an ONNX model, one of its nodes is not what our operators take, its metadata make
                no sense, or its external data is missing, too short, of another export, or has norms or scales that are
                not finite.
        """
        graph = OnnxGraph.read(file)
        check_model(file, graph)
        try:
            packed = [parse_proto(node, graph.initializers) for node in graph.nodes if node.domain == DOMAIN]
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        products = [node for node in packed if node.operator.is_product]
        floats = [graph.initializers[name] for name in _inputs(graph, FLOAT_PRODUCTS, 1)] if products else []
        producers = {output: node.op_type for node in graph.nodes for output in node.output}
        presents = [name for name in graph.outputs if name.startswith("present.") and name.endswith((".key", ".value"))]
        return cls(
            has_packed_weights=bool(products),
            weight_bytes=sum(map(_bytes_read, products)) + sum(tensor.nbytes for tensor in floats),
            arithmetic=_arithmetic(products),
            activations=_activations(graph, packed),
            shared_cache=all(producers.get(name) == "GroupQueryAttention" for name in presents),
            rotary_switch=rotary_switch(file, graph.metadata),
        )


def _bytes_read(node: PackedNode[Any]) -> int:
    """Of packed weights, for a token."""
    weights: int = sum(tensor.nbytes for operand in node.operands for tensor in operand.tensors.values())
    return round(weights * node.read_share)


def _inputs(graph: OnnxGraph, operators: Collection[str], position: int) -> list[str]:
    """The initializers that nodes of some operators have as one of their inputs."""
    found = [node.input[position] for node in graph.nodes if node.op_type in operators and len(node.input) > position]
    return [name for name in found if name in graph.initializers]


def _activations(graph: OnnxGraph, packed: list[PackedNode[Any]]) -> str:
    """Their type, from the embedding, whether it is packed or not."""
    types = [FLOATS[node.own["dtype"]] for node in packed if "dtype" in node.own]
    types += [graph.initializers[name].dtype.name for name in _inputs(graph, {"Gather"}, 0)]
    return next((name for name in types if name in FLOATS.values()), FLOATS[1])


def _count(name: str, value: object, least: int = 1) -> int:
    """A number of things, or of one of them."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 31:
        raise ValueError(f"{name} must be a whole number from {least} to 2^31 - 1, is {value!r}")
    return value


def _file_name(name: str, value: object) -> str:
    """Of a file in the directory itself."""
    if not is_file_name(value):
        raise ValueError(f"{name} must be the name of a file in the directory, is {value!r}")
    return value


def _text_or_none(name: str, value: object) -> str | None:
    if not isinstance(value, str | None):
        raise ValueError(f"{name} must be a text, is {value!r}")
    return value


def _arithmetic(products: list[PackedNode[Any]]) -> str:
    exact = sum(not all(operand.integer for operand in node.operands) for node in products)
    if exact == len(products):
        return "exact arithmetic"
    return "integer arithmetic" + (f", exact in {exact} of {len(products)} products" if exact else "")
