"""Tiny random models, saved the way people save them: safetensors, config and a real tokenizer in one directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 320
TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. How vexingly quick! " * 4
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def tiny_tokenizer(path: Path) -> None:
    """Save a byte-level BPE tokenizer of at most `VOCABULARY` tokens: it encodes any text; <s> is 0 and </s> is 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(path)


def _sizes(layers: int, tie: bool, more: dict[str, Any]) -> dict[str, Any]:
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tie,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "initializer_range": 0.15,
    }
    return {**sizes, **more}


def randomize(model: PreTrainedModel) -> None:
    """Give norms and biases random values: they start as ones and zeros, with which nobody sees if they get lost."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.uniform_(0.5, 1.5)


def _save(model: PreTrainedModel, path: Path, max_shard_size: str) -> Path:
    randomize(model)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    tiny_tokenizer(path)
    return path


def tiny_llama(
    path: Path,
    *,
    layers: int = 2,
    tie: bool = True,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    seed: int = 0,
    max_shard_size: str = "5GB",
    **config: Any,
) -> Path:
    """Save a random Llama (hidden 64, 4 heads, 2 KV heads, intermediate 160, vocabulary 320) and return `path`.

    `config` overrides entries of `LlamaConfig`; `max_shard_size="100KB"` gives a sharded checkpoint.
    """
    torch.manual_seed(seed)
    biases = {"attention_bias": attention_bias, "mlp_bias": mlp_bias}
    return _save(LlamaForCausalLM(LlamaConfig(**_sizes(layers, tie, {**biases, **config}))), path, max_shard_size)


def tiny_mistral(
    path: Path,
    *,
    layers: int = 2,
    sliding_window: int | None = 24,
    tie: bool = False,
    seed: int = 0,
    max_shard_size: str = "5GB",
    **config: Any,
) -> Path:
    """Save a random Mistral of the same sizes as `tiny_llama` with a sliding window and return `path`.

    Mistral has no biases in transformers, so there is no option for them.
    """
    torch.manual_seed(seed)
    more = {"sliding_window": sliding_window, **config}
    return _save(MistralForCausalLM(MistralConfig(**_sizes(layers, tie, more))), path, max_shard_size)
