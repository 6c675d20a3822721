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
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from skim_export.checkpoint import Architecture, Checkpoint, Model
from skim_export.checkpoint.skeleton import skeleton
from skim_export.graph.function import DOMAIN, WEIGHT_INPUTS, lut_functions
from skim_export.packed import CLASSES, FORMAT_VERSION, PackedLinear
from skim_runtime.errors import UserError

__all__ = ["LIBRARY_NAME", "PRECISIONS", "DecoderBuilder", "check_builder"]

BUILDER_VERSION = "0.18.0"
LIBRARY_NAME = "libskim_ops.so"
SILU = ("silu", "swish")
# Type of activations and key/value cache by execution provider: the one in which it has GroupQueryAttention.
PRECISIONS = {"cpu": ("fp32", ir.DataType.FLOAT), "cuda": ("fp16", ir.DataType.FLOAT16)}
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


def _unit_name(node_name: str) -> str:
    """`/model/layers.0/attn/qkv_proj/MatMul` belongs to the unit `model.layers.0.attn.qkv_proj`."""
    return node_name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")


def _lut_model(base: type) -> type:
    """Derive from one of the builder's model classes."""

    class LutModel(base):  # type: ignore[misc]
        skim_checkpoint: Checkpoint
        skim_architecture: Architecture
        skim_weights: Callable[[str], PackedLinear]
        skim_accuracy_level: int
        skim_classes: set[int]
        skim_codebook: set[str]

        def load_weights(self, input_path: str) -> Any:
            """The model with its norms and biases; weights of linear layers and embedding stay on the meta device."""
            model = skeleton(self.skim_checkpoint)
            packed = (torch.nn.Linear, torch.nn.Embedding)
            for module_name, module in model.named_modules():
                for name, _ in list(module.named_parameters(recurse=False)):
                    if not (isinstance(module, packed) and name == "weight"):
                        value = self.skim_checkpoint.tensor(f"{module_name}.{name}")
                        setattr(module, name, torch.nn.Parameter(value, requires_grad=False))
            return model

        def _weight_inputs(self, unit: str) -> tuple[PackedLinear, list[str]]:
            """Register the packed tensors of a unit once and return their names."""
            packed = self.skim_weights(unit)
            for tensor in WEIGHT_INPUTS:
                name = f"{unit}.{tensor}"
                if name in self.model.graph.initializers:
                    continue
                array = getattr(packed, tensor)
                value = self.make_value(name, ir.DataType.from_numpy(array.dtype), array.shape)
                load = partial(self._load, unit, tensor)
                value.const_value = ir.LazyTensor(load, dtype=value.dtype, shape=value.shape, name=name)
                self.model.graph.register_initializer(value)
            self.skim_classes.update(c for c in range(CLASSES) if packed.rows_per_class[c])
            if packed.codebook.size:  # affine rows have none, whatever its type
                self.skim_codebook.add(packed.codebook.dtype.name)
            return packed, [f"{unit}.{tensor}" for tensor in WEIGHT_INPUTS]

        def _load(self, unit: str, tensor: str) -> Any:
            return ir.tensor(getattr(self.skim_weights(unit), tensor))

        def _lut_node(
            self, op_type: str, units: dict[str, str], name: str, value: str, output: str, **attributes: Any
        ) -> None:
            """A node on the packed weights of units, which are all of one shape; the keys are attributes' prefixes."""
            inputs = []
            for prefix, unit in units.items():
                packed, names = self._weight_inputs(unit)
                inputs += names
                attributes[f"{prefix}rows_per_class"] = list(packed.rows_per_class)
            self.make_node(
                op_type,
                inputs=[value, *inputs],
                outputs=[output],
                name=name,
                domain=DOMAIN,
                version=FORMAT_VERSION,
                N=packed.out_features,
                K=packed.in_features,
                **attributes,
            )

        def make_matmul(self, matmul: Any, basename: str, root_input: str, **kwargs: Any) -> str:
            unit = _unit_name(basename)
            if unit == self.skim_architecture.head and self.skim_architecture.tied:
                unit = self.skim_architecture.embedding
            output = "logits" if kwargs.get("logits") else f"{basename}/output_0"
            level = self.skim_accuracy_level
            self._lut_node("LutMatMul", {"": unit}, basename, root_input, output, accuracy_level=level)
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
            unit = self.skim_architecture.embedding
            ids = self.input_names["input_ids"]
            self._lut_node("LutGather", {"": unit}, name, ids, output, dtype=int(self.io_dtype))
            return output

        def make_mlp_proj(self, layer_id: int, mlp: Any, root_input: str) -> None:
            if self.activation not in SILU:
                super().make_mlp_proj(layer_id, mlp, root_input)
                return
            basename = f"/model/layers.{layer_id}/mlp"
            units = {f"{part}_": _unit_name(f"{basename}/{part}_proj/MatMul") for part in ("gate", "up")}
            gated = f"{basename}/LutSwiglu"
            output = f"{gated}/output_0"
            self._lut_node("LutSwiglu", units, gated, root_input, output, accuracy_level=self.skim_accuracy_level)
            self.make_value(output, self.io_dtype, shape=self.make_hidden_state_shape(last_dim=self.intermediate_size))
            down = self.make_matmul(mlp.down_proj, f"{basename}/down_proj/MatMul", output)  # adds its bias itself
            self.mlp_attrs["output_0"] = f"{down}/output_0"

        def update_genai_config(self, genai_config: dict[str, Any]) -> None:
            super().update_genai_config(genai_config)
            options = genai_config["model"]["decoder"]["session_options"]
            options["custom_ops_library"] = LIBRARY_NAME

    return LutModel


class DecoderBuilder:
    """Builds the ONNX decoder of a model on packed weights.

    Args:
        model: what is not packed is read from it.
        weights: returns the packed linear of a unit; called again when the graph is written, one unit at a time.
        output: the ONNX file to be; genai_config.json and the tokenizer files go beside it.
        accuracy_level: of the products with packed weights.
        ep: execution provider that the graph is for, a key of `PRECISIONS`.

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
    ) -> None:
        check_builder()
        with _quiet():
            from onnxruntime_genai.models import builder, builders  # type: ignore[import-not-found,unused-ignore]

            directory, self._target = str(model.checkpoint.path), str(output.parent)
            extra = [
                "fuse_qkv=true",  # rows of one fused matrix are quantized together
                "shared_embeddings=false",  # LutGather and LutMatMul share their tensors instead
                "windowed_kv_cache=false",  # a plain onnxruntime loop need not know of sliding windows
                f"filename={output.name}",
            ]
            precision, dtype = PRECISIONS[ep]
            options = builder.parse_extra_options("", directory, self._target, precision, ep, self._target, extra)
            details = options.pop("hf_details")
            options.pop("_effective_builder_config")
            config = details["hf_config"]
            base = getattr(builders, MODEL_CLASSES[config.architectures[0]])
            self._model = _lut_model(base)(config, dtype, dtype, ep, self._target, options)
        if getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None):
            # The builder applies a window only where the configuration names the layers; Mistral's means all of them.
            self._model.layer_types = ["sliding_attention"] * self._model.num_layers
        self._config = config
        self._directory = directory
        self._model.skim_checkpoint = model.checkpoint
        self._model.skim_architecture = model.architecture
        self._model.skim_weights = weights
        self._model.skim_accuracy_level = accuracy_level
        self._model.skim_classes = set()
        self._model.skim_codebook = set()

    def build(self) -> ir.Model:
        """The graph, its weights not yet loaded, with the fallback functions."""
        with _quiet():
            self._model.make_model(self._directory)
        model: ir.Model = self._model.model
        model.graph.sort()
        model.graph.opset_imports[DOMAIN] = 1
        (codebook,) = self._model.skim_codebook or {"int8"}
        for proto in lut_functions(self._model.skim_classes, codebook):
            function = ir.serde.deserialize_function(proto)
            model.functions[function.identifier()] = function
        return model

    def write_configuration(self) -> None:
        """Write genai_config.json, the tokenizer and its chat template."""
        with _quiet():
            self._model.make_genai_config(self._config, {}, self._target)
            self._model.save_processing(self._directory, {}, self._target)
