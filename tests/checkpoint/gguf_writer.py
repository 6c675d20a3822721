"""Tiny models of transformers as GGUF files, as llama.cpp's converter writes them; it shares nothing with the reader.

The names, the order of rows and the metadata are those of llama.cpp's `conversion/*.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, RopeScalingType
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from ..tiny_models import VOCABULARY

MODEL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
QUERY_KEY_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
AROUND = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
BEFORE_AND_AFTER = {**AROUND, "pre_feedforward_layernorm": "ffn_norm"}
FUSED = {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
LFM2 = {
    "operator_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "conv.conv": "shortconv.conv",
    "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj",
}

Write = Callable[[gguf.GGUFWriter, Any], None]


@dataclass(frozen=True)
class Kind:
    """How models of one architecture are written.

    Attributes:
        name: in GGUF.
        more: writes the metadata that others don't have.
        block: names of modules in a block, beyond those that all have.
        pairs: whether rows of query and key are put in pairs.
        offset: added to the weights of norms.
        model: names of modules outside of blocks, beyond those that all have.
    """

    name: str
    more: Write = lambda writer, config: None
    block: dict[str, str] = field(default_factory=dict)
    pairs: bool = False
    offset: float = 0
    model: dict[str, str] = field(default_factory=dict)


def _llama(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.head_dim)
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(config))


def _llama3_factors(config: Any) -> npt.NDArray[np.float32]:
    rope = config.rope_parameters
    context, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for i in range(0, config.head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / config.head_dim)
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(rope["factor"])
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def _heads(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)


def _gemma2(writer: gguf.GGUFWriter, config: Any) -> None:
    _heads(writer, config)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def _gemma3(writer: gguf.GGUFWriter, config: Any) -> None:
    _heads(writer, config)
    writer.add_sliding_window(config.sliding_window)


def _phi3(writer: gguf.GGUFWriter, config: Any) -> None:
    rope = config.rope_parameters
    size = config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(size * rope["partial_rotary_factor"]))
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    writer.add_sliding_window(config.sliding_window or 0)
    if rope["rope_type"] == "longrope":
        original = config.original_max_position_embeddings
        scale = config.max_position_embeddings / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
        for which in ("long", "short"):
            writer.add_tensor(f"rope_factors_{which}.weight", np.array(rope[f"{which}_factor"], np.float32))


def _olmo3(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])


def _granite(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def _lfm2(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_shortconv_l_cache(config.conv_L_cache)


KINDS = {
    "llama": Kind("llama", _llama, pairs=True),
    "qwen2": Kind("qwen2"),
    "qwen3": Kind("qwen3", _heads, QUERY_KEY_NORMS),
    "gemma": Kind("gemma", _heads, offset=1),
    "gemma2": Kind("gemma2", _gemma2, BEFORE_AND_AFTER, offset=1),
    "gemma3_text": Kind("gemma3", _gemma3, {**BEFORE_AND_AFTER, **QUERY_KEY_NORMS}, offset=1),
    "phi3": Kind("phi3", _phi3, FUSED),
    "lfm2": Kind("lfm2", _lfm2, LFM2, model={"model.embedding_norm": "token_embd_norm"}),
    "olmo2": Kind("olmo2", block={**AROUND, **QUERY_KEY_NORMS}),
    "olmo3": Kind("olmo2", _olmo3, {**AROUND, **QUERY_KEY_NORMS}),
    "granite": Kind("granite", _granite, pairs=True),
    "smollm3": Kind("smollm3", pairs=True),
}


def tiny_network(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A random model whose norms and biases are random, too."""
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.uniform_(-0.5, 0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
    return network


def write_gguf(
    path: Path,
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    pre: str | None = "gpt-2",
    more: Write = lambda writer, config: None,
    without: tuple[str, ...] = (),
    parts_of: int = 0,
) -> dict[str, torch.Tensor]:
    """Write a model; returns the tensors that are in the file, under their names in transformers.

    Args:
        path: the file.
        network: the model.
        tokenizer: its tokenizer, byte-level BPE.
        kind: type of all tensors but vectors.
        pre: how the tokenizer splits text.
        more: writes more metadata or tensors.
        without: metadata that are left out.
        parts_of: if not 0, the most tensors of a part of the model.
    """
    config, its = network.config, KINDS[network.config.model_type]
    writer = gguf.GGUFWriter(path, its.name, split_max_tensors=parts_of)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(_key_value_heads(config))
    writer.add_layer_norm_rms_eps(getattr(config, "norm_eps", None) or config.rms_norm_eps)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    _write_tokenizer(writer, tokenizer, pre)
    its.more(writer, config)
    more(writer, config)
    for part in writer.kv_data:
        for key in without:
            del part[key]
    written = {}
    for name, parameter in network.named_parameters():
        written[name] = _write_tensor(writer, its, config, name, parameter.detach().numpy(), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def _key_value_heads(config: Any) -> int | list[int]:
    if config.model_type != "lfm2":
        return int(config.num_key_value_heads)
    return [config.num_key_value_heads if kind == "full_attention" else 0 for kind in config.layer_types]


def _write_tensor(
    writer: gguf.GGUFWriter, its: Kind, config: Any, name: str, weight: npt.NDArray[np.float32], kind: int
) -> torch.Tensor:
    module, _, suffix = name.rpartition(".")
    if module.startswith("model.layers."):
        _, _, block, part = module.split(".", 3)
        stored_name = f"blk.{block}.{ {**BLOCK, **its.block}[part] }.{suffix}"
    else:
        stored_name = f"{ {**MODEL, **its.model}[module] }.{suffix}"
    stored = weight + np.float32(its.offset) if name.endswith("norm.weight") else weight
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module.split(".")[-1])
    if its.pairs and heads:
        stored = stored.reshape(heads, 2, -1, *stored.shape[1:]).swapaxes(1, 2).reshape(stored.shape)
    stored = np.ascontiguousarray(stored.squeeze(1) if stored.ndim == 3 else stored)
    kind = GGMLQuantizationType(kind if weight.ndim == 2 else GGMLQuantizationType.F32)
    writer.add_tensor(stored_name, gguf.quantize(stored, kind), raw_dtype=kind)
    return torch.from_numpy(weight if weight.ndim != 2 else gguf.dequantize(gguf.quantize(weight, kind), kind))


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, pre: str | None) -> None:
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens += [f"[PAD{number}]" for number in range(len(tokens), VOCABULARY)]
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(tokenizer.chat_template)
