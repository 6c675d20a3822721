"""The decoder graph, through subclasses of onnxruntime-genai's model builder.

The builder is no stable interface: this package is tied to one version. Only this module, and those that the classes
are in (`packed_model`, `attention`, `decoders`, `gemma4`), touch it.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir

from skim_export.checkpoint import Model
from skim_export.graph.function import lut_functions
from skim_export.graph.packed_model import LIBRARY_NAME, Context, PackedModel
from skim_export.packed import PackedLinear
from skim_runtime.errors import UserError, foreign_errors
from skim_runtime.operators import DOMAIN

__all__ = ["LIBRARY_NAME", "PRECISIONS", "DecoderBuilder", "check_builder"]

BUILDER_VERSION = "0.18.0"
# Types of activations and key/value cache.
PRECISIONS = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}

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


def _model_class(model: Model, config: Any) -> type:
    """The class that writes the graph: one of the builder's or of ours, behind ours for packed weights."""
    from onnxruntime_genai.models import builders  # type: ignore[import-not-found,unused-ignore]

    from skim_export.graph import decoders

    name = model.architecture.declaration.graph
    base = getattr(decoders, name, None) or getattr(builders, name)
    return type("Packed", (PackedModel, base), {"config": config})


def _config(model: Model, context: int | None) -> Any:
    """The model's configuration as the builder reads it.

    Its reading differs from transformers' in some places, which are put right here.
    """
    config = model.checkpoint.uniform_config  # it knows one size of heads; classes for more ask the layers
    config.architectures = [model.architecture.name]
    config.name_or_path = str(model.checkpoint.plain_directory)
    # The builder would rather believe entries "seq_length" and "rope_position_scale", which transformers ignores.
    config.seq_length = context or config.max_position_embeddings
    config.rope_position_scale = 1
    if getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None):
        # It applies a window only where the configuration names the layers; it means all of them.
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    if not hasattr(config, "rope_local_base_freq"):
        config.rope_local_base_freq = None  # Gemma 3 reads it, although the tables are not made of it
    return config


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
        directory, self._target = str(model.checkpoint.plain_directory), str(output.parent)
        options = {
            "fuse_qkv": True,  # rows of one fused matrix are quantized together
            "fuse_qk_norm_gqa": False,  # or else a graph for CUDA would not run on the CPU, where it is checked
            "shared_embeddings": False,  # LutGather and LutMatMul share their tensors instead
            "windowed_kv_cache": False,  # a plain onnxruntime loop need not know of sliding windows
            "filename": output.name,
            "hf_token": False,
        }
        config = _config(model, context)
        dtype = PRECISIONS[activations]
        with _quiet():
            self._model: Any = _model_class(model, config)(config, dtype, dtype, ep, self._target, options)
        if (genai_type := model.architecture.declaration.genai_type) is not None:
            self._model.model_type = genai_type
        self._config = config
        self._directory = directory
        self._context = Context(model, weights, accuracy_level, with_library)
        self._model.prepare(self._context)

    def build(self) -> ir.Model:
        """The graph, its weights not yet loaded, with the fallback functions."""
        with _quiet():
            self._model.make_model(self._directory)
        model: ir.Model = self._model.model
        model.graph.sort()
        model.graph.opset_imports[DOMAIN] = 1
        (codebook,) = self._context.codebooks or {"int8"}
        for proto in lut_functions(self._context.classes, codebook, self._context.operators):
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
