"""Checkpoints: whatever is wrong with one, its export runs, or is refused in one line before any work."""

from __future__ import annotations

import shutil
import struct
from dataclasses import replace
from pathlib import Path
from random import Random

import torch

from skim_export.pipeline.export import prepare, run
from skim_export.pipeline.options import ExportOptions
from skim_runtime import Session, UserError, generate

from ..checkpoint.stored_weights import awq, compressed, factors, fp8, gptq, plain_llama, save_adapter, stored_llama
from ..tiny_decoders import tiny_decoder
from ..tiny_models import tiny_mistral
from . import mutate
from .refusal import check_refusal

__all__ = ["attempt", "make"]

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
ADAPTER = "adapter"  # a directory in that of the model
JSON = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", f"{ADAPTER}/adapter_config.json", INDEX)
PLAIN, ADAPTED, SHARDED = "llama", "adapted", "mistral"
MIXTURES = {"mixture": "qwen3-moe", "stacked": "gpt-oss"}  # and the cases of tests/tiny_decoders.py that they are
QUANTIZED = {
    "awq": awq(16),
    "compressed": compressed("pack-quantized", 4, "group", size=16, symmetric=False),
    "fp8": fp8((16, 16)),
    "gptq": gptq(4, order="act"),
}
NAMES = (  # that config.json or an adapter's may have, and that somebody reads
    "alpha_pattern",
    "attention_multiplier",
    "bits",
    "config_groups",
    "decoder_sparse_step",
    "desc_act",
    "format",
    "group_size",
    "hidden_activation",
    "layer_types",
    "logits_scaling",
    "mlp_only_layers",
    "moe_intermediate_size",
    "norm_topk_prob",
    "num_experts",
    "num_experts_per_tok",
    "num_local_experts",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "quant_method",
    "quantization_config",
    "rank_pattern",
    "rope_position_scale",
    "rope_scaling",
    "rope_theta",
    "seq_length",
    "sliding_window",
    "softmax_scale",
    "torch_dtype",
    "use_sliding_window",
    "weight_block_size",
)
OPTIONS = ExportOptions(bits=3, effort="weights", threads=1)
LENGTH_BYTES = 8  # of the header, before it


def make(directory: Path) -> None:
    """Save tiny models: in one file, in shards, quantized, of experts, and one with an adapter."""
    plain_llama(directory / PLAIN)
    tiny_mistral(directory / SHARDED, layers=1, max_shard_size="100KB")
    for name, case in MIXTURES.items():
        tiny_decoder(case, directory / name)
    for name, way in QUANTIZED.items():
        stored_llama(way, directory / PLAIN, directory / name)
    adapter = shutil.copytree(directory / PLAIN, directory / ADAPTED) / ADAPTER
    save_adapter(adapter, {**factors("model.layers.0.self_attn.q_proj", 32, 32), "model.norm.weight": torch.ones(32)})


def attempt(original: Path, random: Random, place: Path) -> bool:
    """Export a damaged copy; whether it was accepted. What is no refusal is raised."""
    chosen = random.choice((PLAIN, SHARDED, ADAPTED, *MIXTURES, *QUANTIZED))
    model = shutil.copytree(original / chosen, place / "model")
    for _ in range(random.choice((1, 1, 2))):
        _damage(random, model)
    output = place / "out" / "model.onnx"
    try:
        job = prepare(str(model), output, replace(OPTIONS, adapter=model / ADAPTER if chosen == ADAPTED else None))
    except UserError as error:
        check_refusal(error)
        return False
    finally:
        assert not output.parent.exists(), "something was written before any work"
    try:
        run(job)
    except UserError as error:
        # The only thing that is known no earlier: the values of the weights, which are read once.
        if any(what in str(error) for what in (" holds a value of ", " holds NaN or infinity", " names group ")):
            return False
        raise AssertionError(f"refused late: {error}") from error
    generate(Session(output.parent, threads=1), [2, 3, 5], max_new_tokens=2)
    return True


def _damage(random: Random, model: Path) -> None:
    file = model / random.choice((CONFIG, CONFIG, CONFIG, *JSON, "weights", "weights"))
    if file.name == "weights":
        _damage_weights(random, random.choice(sorted(model.rglob("*.safetensors")) or [model / CONFIG]))
    elif not file.is_file():
        return
    elif random.randrange(8) == 0:
        mutate.in_file(random, file)
    else:
        file.write_bytes(mutate.in_json(random, file.read_bytes(), NAMES))


def _damage_weights(random: Random, file: Path) -> None:
    if random.randrange(2) or not file.is_file() or file.suffix != ".safetensors":
        mutate.in_file(random, file)
        return
    content = file.read_bytes()
    if len(content) < LENGTH_BYTES:
        return
    (length,) = struct.unpack("<Q", content[:LENGTH_BYTES])
    header, data = content[LENGTH_BYTES : LENGTH_BYTES + length], content[LENGTH_BYTES + length :]
    header = mutate.in_json(random, header)
    if random.randrange(4) == 0:
        length = random.choice(mutate.STRANGE_NUMBERS[:10])
    file.write_bytes(struct.pack("<q", len(header) if random.randrange(8) else int(length) % (1 << 62)) + header + data)
