"""The decoder graph, through a subclass of onnxruntime-genai's model builder.

This is the only module that touches the builder, which is no stable interface: it is tied to one version. What the
subclass changes: linear layers and the embedding become `LutMatMul` and `LutGather` nodes on packed weights, and the
weights of linear layers are never loaded, so memory holds the norms and biases only; gate and up of a feed-forward
network gated by SiLU become one `LutSwiglu` node.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from skim_export.checkpoint import Model
from skim_export.checkpoint.skeleton import skeleton
from skim_export.graph.function import lut_functions
from skim_export.packed import CLASSES, PackedLinear
from skim_runtime.errors import UserError, foreign_errors
from skim_runtime.operators import DOMAIN, LUT_GATHER, LUT_MATMUL, LUT_SWIGLU, Operator, tensor_names

__all__ = ["LIBRARY_NAME", "PRECISIONS", "DecoderBuilder", "check_builder"]

BUILDER_VERSION = "0.18.0"
LIBRARY_NAME = "libskim_ops.so"
SILU = ("silu", "swish")
# What the builder calls each type of activations and key/value cache.
PRECISIONS = {
    "float32": ("fp32", ir.DataType.FLOAT),
    "float16": ("fp16", ir.DataType.FLOAT16),
    "bfloat16": ("bf16", ir.DataType.BFLOAT16),
}
MODEL_CLASSES = {"LlamaForCausalLM": "LlamaModel", "MistralForCausalLM": "MistralModel"}

log = logging.getLogger(__name__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The builder prints; its lines go to the debug log."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            log.debug("model builder: %s", line)


def check_builder() -> None:
    """Check the version of the model builder.

    Raises:
        UserError: the installed onnxruntime-genai is not the one that this module was written for.
    """
    installed = metadata.version("onnxruntime-genai")
    if installed != BUILDER_VERSION:
        raise UserError(
            f"onnxruntime-genai {installed} is installed; the export needs {BUILDER_VERSION}: "
            f"pip install onnxruntime-genai=={BUILDER_VERSION}"
        )


def _linear_name(node_name: str) -> str:
    """`/model/layers.0/attn/qkv_proj/MatMul` multiplies with the linear `model.layers.0.attn.qkv_proj`."""
    return node_name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")


@dataclass(frozen=True)
class _Context:
    """What a model of the builder gets to know of the packed weights, and what it finds out.

    Attributes:
        model: the norms and biases come from its checkpoint.
        weights: returns the packed linear of a name.
        accuracy_level: of the products.
        with_library: whether genai_config.json names the operator library.
        classes: the row classes of the linears so far.
        codebooks: the types of their codebooks.
    """

    model: Model
    weights: Callable[[str], PackedLinear]
    accuracy_level: int
    with_library: bool
    classes: set[int] = field(default_factory=set)
    codebooks: set[str] = field(default_factory=set)


class _LutModel:
    """Goes in front of one of the builder's model classes, and makes nodes on packed weights.

    The attributes are the builder's but for `context`, which is set before the graph is made.
    """

    context: _Context
    model: ir.Model
    values: dict[str, ir.Value]
    io_dtype: ir.DataType
    input_names: dict[str, str]
    activation: str
    intermediate_size: int
    mlp_attrs: dict[str, Any]
    make_node: Callable[..., None]
    make_value: Callable[..., Any]
    make_hidden_state_shape: Callable[..., list[int | str]]

    def load_weights(self, input_path: str) -> Any:
        """The model with its norms and biases; weights of linear layers and embedding stay on the meta device."""
        model = skeleton(self.context.model.checkpoint)
        packed = (torch.nn.Linear, torch.nn.Embedding)
        for module_name, module in model.named_modules():
            for name, _ in list(module.named_parameters(recurse=False)):
                if not (isinstance(module, packed) and name == "weight"):
                    value = self.context.model.checkpoint.tensor(f"{module_name}.{name}")
                    setattr(module, name, torch.nn.Parameter(value, requires_grad=False))
        return model

    def _register(self, linear: str) -> PackedLinear:
        """Register the packed tensors of a linear, once."""
        context, graph = self.context, self.model.graph
        packed = context.weights(linear)
        for tensor, name in tensor_names(linear).items():
            if name in graph.initializers:
                continue
            array = getattr(packed, tensor)
            value = self.make_value(name, ir.DataType.from_numpy(array.dtype), array.shape)
            load = partial(self._load, linear, tensor)
            value.const_value = ir.LazyTensor(load, dtype=value.dtype, shape=value.shape, name=name)
            graph.register_initializer(value)
        context.classes.update(c for c in range(CLASSES) if packed.rows_per_class[c])
        if packed.codebook.size:  # affine rows have none, whatever its type
            context.codebooks.add(packed.codebook.dtype.name)
        return packed

    def _load(self, linear: str, tensor: str) -> Any:
        return ir.tensor(getattr(self.context.weights(linear), tensor))

    def _packed_node(
        self, operator: Operator, linears: list[str], name: str, value: str, output: str, **own: int
    ) -> None:
        """A node on packed linears, which are all of one shape; `own` are the operator's own attributes."""
        attributes = operator.node_attributes([self._register(linear) for linear in linears], **own)
        inputs = operator.node_inputs(value, linears)
        self.make_node(operator.name, inputs=inputs, outputs=[output], name=name, domain=DOMAIN, **attributes)

    def make_matmul(self, matmul: Any, basename: str, root_input: str, **kwargs: Any) -> str:
        linear, architecture = _linear_name(basename), self.context.model.architecture
        if linear == architecture.head and architecture.tied:
            linear = architecture.embedding
        output = "logits" if kwargs.get("logits") else f"{basename}/output_0"
        level = self.context.accuracy_level
        self._packed_node(LUT_MATMUL, [linear], basename, root_input, output, accuracy_level=level)
        seq_dim = kwargs.get("seq_dim", "sequence_length")
        shape = self.make_hidden_state_shape(seq_dim=seq_dim, last_dim=matmul.weight.shape[0])
        self.make_value(output, self.io_dtype, shape=shape)
        return basename

    def make_add_bias(self, add: Any, name: str, root_input: str, **kwargs: Any) -> None:
        """The packed linear adds its bias itself: its output takes the place of the sum's."""
        output = "logits" if kwargs.get("logits") else f"{name}/output_0"
        value = self.values.pop(root_input)
        value.name = output
        self.values[output] = value

    def make_embedding_lookup(self, embedding: Any, basename: str, lm_head: Any) -> str:
        name = f"{basename}/LutGather"
        output = f"{name}/output_0"
        ids, dtype = self.input_names["input_ids"], int(self.io_dtype)
        self._packed_node(LUT_GATHER, [self.context.model.architecture.embedding], name, ids, output, dtype=dtype)
        return output

    def make_mlp_proj(self, layer_id: int, mlp: Any, root_input: str) -> None:
        if self.activation not in SILU:
            super().make_mlp_proj(layer_id, mlp, root_input)  # type: ignore[misc]
            return
        basename = f"/model/layers.{layer_id}/mlp"
        linears = [_linear_name(f"{basename}/{part}_proj/MatMul") for part in ("gate", "up")]
        gated = f"{basename}/LutSwiglu"
        output = f"{gated}/output_0"
        level = self.context.accuracy_level
        self._packed_node(LUT_SWIGLU, linears, gated, root_input, output, accuracy_level=level)
        self.make_value(output, self.io_dtype, shape=self.make_hidden_state_shape(last_dim=self.intermediate_size))
        down = self.make_matmul(mlp.down_proj, f"{basename}/down_proj/MatMul", output)  # adds its bias itself
        self.mlp_attrs["output_0"] = f"{down}/output_0"

    def update_genai_config(self, genai_config: dict[str, Any]) -> None:
        super().update_genai_config(genai_config)  # type: ignore[misc]
        if self.context.with_library:
            genai_config["model"]["decoder"]["session_options"]["custom_ops_library"] = LIBRARY_NAME


class DecoderBuilder:
    """Builds the ONNX decoder of a model on packed weights.

    Args:
        model: what is not packed is read from it.
        weights: returns the packed linear of a name; called again when the graph is written, one linear at a time.
        output: the ONNX file to be; genai_config.json and the tokenizer files go beside it.
        accuracy_level: of the products with packed weights.
        ep: execution provider that the graph is for.
        activations: their type, a key of `PRECISIONS`.
        with_library: whether the operator library will lie beside the model, for programs other than skim-runtime.
        context: positions that the rotary tables have; by default all that the model was made for.

    Raises:
        UserError: the installed onnxruntime-genai is not the one that this module was written for.
    """

    def __init__(
        self,
        model: Model,
        weights: Callable[[str], PackedLinear],
        output: Path,
        accuracy_level: int,
        ep: str = "cpu",
        activations: str = "float32",
        *,
        with_library: bool = False,
        context: int | None = None,
    ) -> None:
        check_builder()
        with _quiet():
            from onnxruntime_genai.models import builder, builders  # type: ignore[import-not-found,unused-ignore]

            directory, self._target = str(model.checkpoint.plain_directory), str(output.parent)
            extra = [
                "fuse_qkv=true",  # rows of one fused matrix are quantized together
                "shared_embeddings=false",  # LutGather and LutMatMul share their tensors instead
                "windowed_kv_cache=false",  # a plain onnxruntime loop need not know of sliding windows
                f"filename={output.name}",
            ]
            precision, dtype = PRECISIONS[activations]
            options = builder.parse_extra_options("", directory, self._target, precision, ep, self._target, extra)
            details = options.pop("hf_details")
            options.pop("_effective_builder_config")
            config = details["hf_config"]
            base = getattr(builders, MODEL_CLASSES[config.architectures[0]])
            self._model: Any = type("LutModel", (_LutModel, base), {})(config, dtype, dtype, ep, self._target, options)
        if getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None):
            # The builder applies a window only where the configuration names the layers; Mistral's means all of them.
            self._model.layer_types = ["sliding_attention"] * self._model.num_layers
        # The builder would rather believe entries "seq_length" and "rope_position_scale", which transformers ignores.
        self._model.context_length = context or config.max_position_embeddings
        self._model.rope_attrs |= {"cache_length": self._model.context_length, "position_scale": 1}
        self._config = config
        self._directory = directory
        self._context = _Context(model, weights, accuracy_level, with_library)
        self._model.context = self._context

    def build(self) -> ir.Model:
        """The graph, its weights not yet loaded, with the fallback functions."""
        with _quiet():
            self._model.make_model(self._directory)
        model: ir.Model = self._model.model
        model.graph.sort()
        model.graph.opset_imports[DOMAIN] = 1
        (codebook,) = self._context.codebooks or {"int8"}
        for proto in lut_functions(self._context.classes, codebook):
            function = ir.serde.deserialize_function(proto)
            model.functions[function.identifier()] = function
        return model

    def write_configuration(self) -> None:
        """Write genai_config.json, the tokenizer and its chat template.

        Raises:
            UserError: the model builder makes none of what the checkpoint says.
        """
        with foreign_errors("the model builder makes no configuration of it", but=(OSError,)), _quiet():
            self._model.make_genai_config(self._config, {}, self._target)
            self._model.save_processing(self._directory, {}, self._target)
