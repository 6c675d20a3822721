"""Tiny random checkpoints of every supported architecture, with the features that its real models have."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.tiny_models import VOCABULARY, randomize, tiny_tokenizer

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "initializer_range": 0.15,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(6)],
    "long_factor": [1.0 + 0.7 * i for i in range(6)],
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 32,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 1000.0, "factor": 1.0}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 6, "num_experts_per_tok": 2}
SLIDING, FULL = "sliding_attention", "full_attention"

HYBRID = {
    "head_dim": 32,
    "layer_types": ["linear_attention", "linear_attention", FULL],
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}

# By name of the case: the model class, and what its configuration has beside `SIZES`.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "mistral": ("MistralForCausalLM", {"sliding_window": 24, "head_dim": 32}),
    "ministral3": (
        "Ministral3ForCausalLM",
        {
            "head_dim": 32,
            "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0},
            "tie_word_embeddings": True,
        },
    ),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen2-window": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1, "tie_word_embeddings": False},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 32, "num_key_value_heads": 1}),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        {
            **EXPERTS,
            "head_dim": 32,
            "mlp_only_layers": [1],
            "norm_topk_prob": True,
        },
    ),
    "qwen2-moe": (
        "Qwen2MoeForCausalLM",
        {
            **EXPERTS,
            "shared_expert_intermediate_size": 64,
            "decoder_sparse_step": 2,
            "norm_topk_prob": False,
            "tie_word_embeddings": True,
        },
    ),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 64}),
    "gpt-oss": (
        "GptOssForCausalLM",
        {
            "head_dim": 32,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "intermediate_size": 64,
            "sliding_window": 24,
            "layer_types": [SLIDING, FULL, SLIDING],
            "rope_parameters": {**YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
        },
    ),
    "olmoe": ("OlmoeForCausalLM", {"num_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 32}),
    "gemma": ("GemmaForCausalLM", {"head_dim": 32, "hidden_activation": "gelu_pytorch_tanh"}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 24,
            "sliding_window": 24,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 24,
            "sliding_window": 24,
            "layer_types": [SLIDING, SLIDING, FULL],
            "rope_parameters": {
                SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
                FULL: {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
            },
        },
    ),
    "gemma4": (
        "Gemma4ForCausalLM",
        {
            "head_dim": 16,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "sliding_window": 24,
            "layer_types": [SLIDING, SLIDING, FULL],
            "final_logit_softcapping": 3.0,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
        },
    ),
    "gemma4-unified": (
        "Gemma4UnifiedForCausalLM",
        {
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": 24,
            "layer_types": [SLIDING, FULL],
            "num_hidden_layers": 2,
        },
    ),
    "gemma4-e": (
        "Gemma4ForCausalLM",
        {
            "num_hidden_layers": 5,
            "head_dim": 16,
            "global_head_dim": 32,
            "num_key_value_heads": 1,
            "sliding_window": 24,
            "layer_types": [SLIDING, SLIDING, FULL, SLIDING, FULL],
            "final_logit_softcapping": 3.0,
            "hidden_size_per_layer_input": 24,
            "vocab_size_per_layer_input": VOCABULARY,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
        },
    ),
    "phi3": ("Phi3ForCausalLM", {"sliding_window": 24}),
    "phi3-long": (
        "Phi3ForCausalLM",
        {"rope_parameters": LONG, "original_max_position_embeddings": 32, "tie_word_embeddings": True},
    ),
    "smollm3": ("SmolLM3ForCausalLM", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    "granite": (
        "GraniteForCausalLM",
        {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
            "tie_word_embeddings": True,
        },
    ),
    "granite-moe": (
        "GraniteMoeForCausalLM",
        {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "intermediate_size": 32,
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "olmo3": (
        "Olmo3ForCausalLM",
        {"sliding_window": 24, "layer_types": [SLIDING, SLIDING, FULL], "num_key_value_heads": 4},
    ),
    "ernie4_5": ("Ernie4_5ForCausalLM", {"head_dim": 32, "tie_word_embeddings": True}),
    "hunyuan": (
        "HunYuanDenseV1ForCausalLM",
        {"head_dim": 32, "rope_parameters": DYNAMIC},
    ),
    "seed_oss": ("SeedOssForCausalLM", {"head_dim": 32, "attention_bias": True, "attention_out_bias": False}),
    "cwm": ("CwmForCausalLM", {"head_dim": 32, "sliding_window": 24, "layer_types": [FULL, SLIDING, SLIDING]}),
    "lfm2": (
        "Lfm2ForCausalLM",
        {"layer_types": ["conv", FULL, "conv"], "block_auto_adjust_ff_dim": True, "block_multiple_of": 32},
    ),
    "lfm2-moe": (
        "Lfm2MoeForCausalLM",
        {**EXPERTS, "layer_types": ["conv", FULL, "conv"], "num_dense_layers": 1, "routed_scaling_factor": 1.5},
    ),
    "qwen3_5": ("Qwen3_5ForCausalLM", HYBRID),
    "qwen3_5-moe": ("Qwen3_5MoeForCausalLM", {**HYBRID, **EXPERTS, "shared_expert_intermediate_size": 64}),
}

MIXTURES = {name for name, (_, entries) in DECODERS.items() if {"num_experts", "num_local_experts"} & entries.keys()}


def tiny_decoder(name: str, path: Path, seed: int = 0, **entries: Any) -> Path:
    """Save the random checkpoint of a case with its tokenizer, and return `path`."""
    architecture, more = DECODERS[name]
    model_class = getattr(transformers, architecture)
    torch.manual_seed(seed)
    network = model_class(model_class.config_class(**{**SIZES, **more, **entries}))
    randomize(network)
    network.save_pretrained(path)
    tiny_tokenizer(path)
    return path


def cases(names: Iterable[str], *always: str) -> list[Any]:
    """The cases of some names as parameters; all but a few are slow ones."""
    return [pytest.param(name, marks=() if name in always else pytest.mark.slow) for name in names]
