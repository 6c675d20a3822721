"""Whether the graph will mean what transformers means: tried on a small model of the same kind, before any long work.

The graph follows the model builder's reading of config.json, calibration and quantizer follow that of transformers.
Where they differ, an export would be wrong without a word. So two blocks with random weights are exported, whose
configuration is the model's own but for sizes: fewer heads, a short window, a short original context, so that a few
tokens pass them.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skim_export.checkpoint import Checkpoint, Linear, Model, linear_bias
from skim_export.checkpoint.skeleton import state_once
from skim_export.graph.external_data import save_model
from skim_export.graph.genai_builder import DecoderBuilder
from skim_export.measure.random_linear import random_linear
from skim_export.packed import PackedLinear
from skim_export.packed.dequantized import dequantized_model
from skim_export.work.files import disk_error, write_json
from skim_runtime.errors import UserError, foreign_errors, reason
from skim_runtime.library import library_path
from skim_runtime.load_library import one_line
from skim_runtime.progress import Progress
from skim_runtime.states import State

__all__ = ["prove"]

BLOCKS = 2
VOCABULARY = 61  # like no other size: the builder knows the head by it
WINDOW = 20  # positions, if the model has a window
CONTEXT = 32  # of positions that the model was first trained on, if it says so
LENGTHS = (12, 56)  # tokens: within and beyond those
FATAL = 4  # severity of what onnxruntime logs
TABLE = 7  # the row class of 8 bits with a codebook of int8
SPREAD = 1.5  # of the products with weights: enough for attention to look at something
BOUND = 1e-3  # of the relative error; rounding gives 1e-6
TOKENIZER = {  # the model builder asks for one
    "tokenizer.json": {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    },
    "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
}
FIRST_MIXTURES = {"num_dense_layers": 1, "decoder_sparse_step": 2}  # entries that say where they are
ORIGINAL = "original_max_position_embeddings"
BY_LAYER = ("layer_types", "no_rope_layers")  # entries with a value for each layer


def prove(model: Model, read: Callable[[Path], object] | None = None) -> None:
    """Compare the graph of a small model of the same kind with transformers.

    Args:
        model: the model.
        read: what is to read the graph later; raises UserError for what it does not know.

    Raises:
        UserError: they differ, or the graph can't be made or read.
    """
    file = model.checkpoint.path / "config.json"
    try:
        errors = _errors(json.dumps(_small(model.checkpoint), sort_keys=True), read)
    except UserError as error:
        raise UserError(f"{file}: tried on a small model of this kind: {error}") from error
    for length, distance in zip(LENGTHS, errors, strict=True):
        if not distance <= BOUND:
            raise UserError(
                f"{file}: the graph would not mean what transformers means: after {length} tokens the logits of a "
                f"small model of this kind differ by {distance:.2g} (relative; {BOUND:g} is allowed)"
            )


def _small(checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration of a small model of the same kind."""
    config, raw = checkpoint.uniform_config, copy.deepcopy(checkpoint.raw_config)
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    kv_heads = heads if kv_heads is None else kv_heads
    head_size = _head_size(config)
    few = min(kv_heads, 2)
    kinds = {name: getattr(config, name) for name in BY_LAYER if getattr(config, name, None) is not None}
    sharing = getattr(config, "kv_sharing_modes", [])
    layers = _unlike_layers([*kinds.values(), *([sharing] if sharing else [])], config.num_hidden_layers)
    raw |= {
        "num_hidden_layers": len(layers),
        "num_key_value_heads": few,
        "num_attention_heads": few * (heads // kv_heads),
        "hidden_size": few * (heads // kv_heads) * head_size,
        "intermediate_size": 96,
        "vocab_size": VOCABULARY,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    raw |= {name: [of_layers[layer] for layer in layers] for name, of_layers in kinds.items()}
    raw |= _few_experts(config, raw)
    if sharing:
        raw["num_kv_shared_layers"] = sum(sharing[layer] == "reuse" for layer in layers)
    if hasattr(config, "vocab_size_per_layer_input"):
        raw["vocab_size_per_layer_input"] = VOCABULARY
    if checkpoint.config.is_heterogeneous:
        raw["per_layer_config"] = _own_values(checkpoint.config, layers, few)
    if isinstance(raw.get("sliding_window"), int):
        raw["sliding_window"] = min(raw["sliding_window"], WINDOW)
    for holder in (
        raw,
        *(raw[name] for name in ("rope_scaling", "rope_parameters") if isinstance(raw.get(name), dict)),
    ):
        if isinstance(holder.get(ORIGINAL), int):
            holder[ORIGINAL] = min(holder[ORIGINAL], CONTEXT)
    return raw


def _few_experts(config: Any, raw: dict[str, Any]) -> dict[str, Any]:
    """What makes a mixture small: few narrow experts, in the second block at least, where the model has some."""
    small: dict[str, Any] = {}
    for name in ("num_experts", "num_local_experts"):
        if raw.get(name):
            small[name] = min(raw[name], getattr(config, "num_experts_per_tok", 1) + 3)
    small |= {name: 32 for name in ("moe_intermediate_size", "shared_expert_intermediate_size") if raw.get(name)}
    small |= {name: min(raw[name], most) for name, most in FIRST_MIXTURES.items() if raw.get(name)}
    if raw.get("mlp_only_layers"):
        small["mlp_only_layers"] = [0]
    return small


def _unlike_layers(kinds: list[list[Any]], count: int) -> list[int]:
    """One layer of each kind, and at least `BLOCKS`, if there are so many."""
    first: dict[tuple[Any, ...], int] = {}
    for layer in range(count):
        first.setdefault(tuple(of_layers[layer] for of_layers in kinds), layer)
    chosen = set(first.values())
    chosen |= set([layer for layer in range(count) if layer not in chosen][: max(0, BLOCKS - len(chosen))])
    return sorted(chosen)


def _own_values(config: Any, layers: list[int], kv_heads: int) -> dict[str, dict[str, Any]]:
    """What single layers have of their own, by the number that they get among `layers`."""
    own = {int(layer): dict(values) for layer, values in config.to_dict()["per_layer_config"].items()}
    for values in own.values():
        if "num_key_value_heads" in values:
            values["num_key_value_heads"] = min(values["num_key_value_heads"], kv_heads)
    return {str(number): own[layer] for number, layer in enumerate(layers) if layer in own}


def _head_size(config: Any) -> int:
    size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return size


@lru_cache(maxsize=8)
def _errors(config: str, read: Callable[[Path], object] | None) -> list[float]:
    """Relative errors of the logits by `LENGTHS`."""
    with tempfile.TemporaryDirectory(prefix="skim-proof-") as name:
        directory = Path(name)
        (directory / "config.json").write_text(config, "utf-8")
        for file, content in TOKENIZER.items():
            write_json(directory / file, content)
        try:
            return _compare(directory, read)
        except UserError as error:
            raise UserError(str(error).replace(f"{directory}/", "")) from error
        except Exception as error:
            if (reason := disk_error(error)) is None:
                raise
            raise UserError(f"cannot write to {directory.parent}: {reason}") from error


def _compare(directory: Path, read: Callable[[Path], object] | None) -> list[float]:
    import onnxruntime as ort
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    random = np.random.default_rng(0)
    with foreign_errors(f"{directory / 'config.json'}"), torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory, trust_remote_code=False))
    tensors = {
        name: torch.from_numpy(random.uniform(0.5, 1.5, tuple(tensor.shape)).astype(np.float32))
        for name, tensor in state_once(network).items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    model = Model.open(directory)
    packed = {
        linear.name: _random(random, model.checkpoint, linear)
        for linear in (*model.architecture.linears, *model.architecture.vocabulary_linears)
    }
    if model.architecture.tied:
        packed[model.architecture.head] = packed[model.architecture.embedding]
    try:
        builder = DecoderBuilder(
            model, packed.__getitem__, directory / "proof.onnx", accuracy_level=0, context=max(LENGTHS)
        )
        save_model(builder.build(), directory / "proof.onnx", Progress())
    except Exception as error:  # whatever the model builder stumbles over
        if isinstance(error, UserError) or disk_error(error):
            raise
        raise UserError(f"the model builder makes no graph of it: {reason(error)}") from error
    if read is not None:
        read(directory / "proof.onnx")

    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    options.log_severity_level = FATAL  # errors are told by exceptions
    try:
        session = ort.InferenceSession(directory / "proof.onnx", options, providers=["CPUExecutionProvider"])
        tokens = random.integers(VOCABULARY, size=max(LENGTHS))
        head_size = _head_size(model.checkpoint.uniform_config)
        found = [_logits(session, directory / "proof.onnx", head_size, tokens[:length]) for length in LENGTHS]
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise UserError(f"onnxruntime refuses the graph: {one_line(error)}") from error
    reference = dequantized_model(model, packed.__getitem__)
    errors = []
    for length, got in zip(LENGTHS, found, strict=True):
        with foreign_errors("transformers can't run it"), torch.no_grad():
            want = reference(torch.from_numpy(tokens[None, :length])).logits[0].numpy()
        errors.append(float(np.linalg.norm(got - want) / np.linalg.norm(want)))
    return errors


def _random(random: np.random.Generator, checkpoint: Checkpoint, linear: Linear) -> PackedLinear:
    """Random weights for a linear, with the bias that its checkpoint has."""
    packed = random_linear(random, linear.out_features, linear.in_features, {TABLE: 1.0})
    spread = packed.dequantize().std() * np.sqrt(linear.in_features)
    bias = linear_bias(checkpoint, linear)
    scale = (packed.row_scale * (SPREAD / spread)).astype(np.float16)
    return replace(packed, row_scale=scale, bias=packed.bias if bias is None else bias)


def _logits(session: Any, file: Path, head_size: int, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Logits `[S, V]` of tokens `[S]`."""
    feeds = {"input_ids": tokens[None], "attention_mask": np.ones((1, len(tokens)), np.int64)}
    for value in session.get_inputs():
        if (state := State.of_input(file, value, head_size)) is not None:
            feeds[value.name] = state.zeros()
        elif value.name == "position_ids":
            feeds[value.name] = np.arange(len(tokens), dtype=np.int64)[None]
    logits: npt.NDArray[np.float32] = session.run(["logits"], feeds)[0][0]
    return logits
