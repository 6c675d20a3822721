"""config.json of a GGUF model: what its metadata says, in the words of transformers.

transformers has such a mapping, too, but of few keys: scaled rotary embeddings, the size of Qwen3's heads, soft caps
and Granite's multipliers are lost in it without a word. Here a key of an architecture that nobody reads is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from skim_runtime.errors import UserError, foreign_errors

from .header import GgufHeader
from .metadata import Metadata
from .rotary import rotary

__all__ = ["GgufArchitecture", "generation_config", "gguf_architecture", "gguf_config"]

END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")
FULL, SLIDING = "full_attention", "sliding_attention"
LOCAL_BASE = 10000.0  # of the rotary embeddings of Gemma 3's sliding layers, where the file does not say it
LARGEST_GEMMAS = {"gemma2": 46, "gemma3": 62}  # blocks of those of 27 billion, which scale attention in another way

Config = dict[str, Any]


@dataclass(frozen=True)
class GgufArchitecture:
    """How llama.cpp stores the models of a class of transformers.

    Attributes:
        model_class: e.g. "LlamaForCausalLM".
        model_type: as config.json has it.
        more: the entries of config.json beyond those that all have, or other than them.
        interleaved: whether the rows of query and key lie as pairs of rotary dimensions, not as halves.
        norm_offset: what was added to the weights of norms.
        partial_rotary: whether only the first dimensions of a head may be rotary.
    """

    model_class: str
    model_type: str
    more: Callable[[Metadata, Config], Config] = lambda metadata, config: {}
    interleaved: bool = False
    norm_offset: float = 0.0
    partial_rotary: bool = False


def gguf_architecture(header: GgufHeader) -> GgufArchitecture:
    """The architecture of a model.

    Raises:
        UserError: it is unknown.
    """
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UserError(f"{header.files[0]} has the GGUF architecture {name!r}; known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def gguf_config(header: GgufHeader) -> Config:
    """The content of config.json.

    Raises:
        UserError: the architecture is unknown, or the metadata lacks something, or says something that has no place.
    """
    architecture, metadata = gguf_architecture(header), Metadata(header)
    with foreign_errors(f"{metadata.file}: its metadata make no sense"):  # values of any type may stand anywhere
        config = _config(architecture, metadata, header)
        config |= architecture.more(metadata, config)
    metadata.check()
    return config


def generation_config(config: Config) -> Config:
    """The content of generation_config.json."""
    return {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _config(architecture: GgufArchitecture, metadata: Metadata, header: GgufHeader) -> Config:
    """What all architectures have."""
    heads, hidden = metadata.size("attention.head_count"), metadata.size("embedding_length")
    if "token_embd.weight" not in header.tensors:
        raise UserError(f"{header.files[0]} has no tensor token_embd.weight")
    blocks = len({name.split(".")[1] for name in header.tensors if name.startswith("blk.")})
    if metadata.size("block_count") != blocks:
        said = f"{metadata.architecture}.block_count is {metadata.size('block_count')}"
        raise UserError(f"{metadata.file}: {said}, its tensors are of {blocks} blocks")
    rotary_size = metadata.size("rope.dimension_count", metadata.get("attention.key_length", hidden // heads))
    head_size = metadata.size("attention.key_length", hidden // heads if architecture.partial_rotary else rotary_size)
    metadata.expect("attention.value_length", head_size)
    if not architecture.partial_rotary:
        metadata.expect("rope.dimension_count", head_size)
    return {
        "architectures": [architecture.model_class],
        "model_type": architecture.model_type,
        "dtype": "float32",
        "hidden_size": hidden,
        "intermediate_size": metadata.size("feed_forward_length"),
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.size("attention.head_count_kv", heads),
        "head_dim": head_size,
        "hidden_act": "silu",
        "max_position_embeddings": metadata.size("context_length"),
        "rms_norm_eps": metadata.need("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rotary(metadata, header, head_size, rotary_size),
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_output.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in header.tensors,
        **_special_tokens(header),
    }


def _special_tokens(header: GgufHeader) -> Config:
    """Whatever ends a text or a turn of a chat ends generation."""
    bos, padding, *found = (
        header.metadata.get(f"tokenizer.ggml.{key}") for key in ("bos_token_id", "padding_token_id", *END_TOKENS)
    )
    ends = list(dict.fromkeys(end for end in found if end is not None))
    return {
        "bos_token_id": bos,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": next(iter(ends), None) if padding is None else padding,
    }


def _llama(metadata: Metadata, config: Config) -> Config:
    """Mistral's models are of this architecture; a window tells that one is."""
    window = metadata.get("attention.sliding_window")
    mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}
    return mistral if window else {}


def _gemma(metadata: Metadata, config: Config) -> Config:
    return {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}


def _gemma2(metadata: Metadata, config: Config) -> Config:
    largest = config["num_hidden_layers"] == LARGEST_GEMMAS[metadata.architecture]
    return {
        **_gemma(metadata, config),
        "query_pre_attn_scalar": (
            config["hidden_size"] // config["num_attention_heads"] if largest else config["head_dim"]
        ),
        "attn_logit_softcapping": metadata.get("attn_logit_softcapping"),
        "final_logit_softcapping": metadata.get("final_logit_softcapping"),
        **_windows(metadata, config, period=2),
    }


def _gemma3(metadata: Metadata, config: Config) -> Config:
    local = {"rope_type": "default", "rope_theta": metadata.get("rope.freq_base_swa", LOCAL_BASE)}
    return {
        **_gemma2(metadata, config),
        **_windows(metadata, config, period=6),
        "rope_parameters": {FULL: config["rope_parameters"], SLIDING: local},
    }


def _windows(metadata: Metadata, config: Config, period: int) -> Config:
    """The kind of every layer: one in `period` sees the whole text, unless the file says it otherwise."""
    window, layers = metadata.get("attention.sliding_window"), config["num_hidden_layers"]
    pattern = metadata.get("attention.sliding_window_pattern", period)
    sliding = pattern if isinstance(pattern, list) else [(layer + 1) % pattern != 0 for layer in range(layers)]
    return {
        "sliding_window": window or None,
        "layer_types": [SLIDING if window and slides else FULL for slides in sliding[:layers]],
    }


def _phi3(metadata: Metadata, config: Config) -> Config:
    original = metadata.get("rope.scaling.original_context_length", config["max_position_embeddings"])
    return {
        "sliding_window": metadata.get("attention.sliding_window") or None,
        "original_max_position_embeddings": original,
    }


def _lfm2(metadata: Metadata, config: Config) -> Config:
    heads = metadata.need("attention.head_count_kv")
    return {
        "norm_eps": config["rms_norm_eps"],
        "block_auto_adjust_ff_dim": False,  # the file has the size that came of it
        "conv_L_cache": metadata.size("shortconv.l_cache"),
        "layer_types": [FULL if count else "conv" for count in heads],
    }


def _olmo2(metadata: Metadata, config: Config) -> Config:
    """Olmo 3 is of this architecture; a window tells that a model is."""
    if not metadata.get("attention.sliding_window"):
        return {}
    theta = metadata.get("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    return {
        "architectures": ["Olmo3ForCausalLM"],
        "model_type": "olmo3",
        **_windows(metadata, config, period=4),
        "rope_parameters": {
            FULL: config["rope_parameters"],
            SLIDING: {"rope_type": "default", "rope_theta": theta},  # scaled rotary embeddings are not for these
        },
    }


def _granite(metadata: Metadata, config: Config) -> Config:
    return {
        "embedding_multiplier": metadata.get("embedding_scale", 1.0),
        "residual_multiplier": metadata.get("residual_scale", 1.0),
        "attention_multiplier": metadata.get("attention.scale", config["head_dim"] ** -0.5),
        "logits_scaling": metadata.get("logit_scale", 1.0),
    }


def _smollm3(metadata: Metadata, config: Config) -> Config:
    return {"no_rope_layer_interval": 4}  # the file does not say it; all models of the architecture have it


ARCHITECTURES = {
    "llama": GgufArchitecture("LlamaForCausalLM", "llama", _llama, interleaved=True),
    "qwen2": GgufArchitecture("Qwen2ForCausalLM", "qwen2"),
    "qwen3": GgufArchitecture("Qwen3ForCausalLM", "qwen3"),
    "gemma": GgufArchitecture("GemmaForCausalLM", "gemma", _gemma, norm_offset=1),
    "gemma2": GgufArchitecture("Gemma2ForCausalLM", "gemma2", _gemma2, norm_offset=1),
    "gemma3": GgufArchitecture("Gemma3ForCausalLM", "gemma3_text", _gemma3, norm_offset=1),
    "phi3": GgufArchitecture("Phi3ForCausalLM", "phi3", _phi3, partial_rotary=True),
    "lfm2": GgufArchitecture("Lfm2ForCausalLM", "lfm2", _lfm2),
    "olmo2": GgufArchitecture("Olmo2ForCausalLM", "olmo2", _olmo2),
    "granite": GgufArchitecture("GraniteForCausalLM", "granite", _granite, interleaved=True),
    "smollm3": GgufArchitecture("SmolLM3ForCausalLM", "smollm3", _smollm3, interleaved=True),
}
