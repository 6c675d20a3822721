"""Conversion of a GGUF file of the llama family to a Hugging Face directory."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skim_runtime.errors import UserError, foreign_errors
from skim_runtime.progress import Progress

__all__ = ["convert_gguf"]

HEADER = struct.Struct("<4sIQQ")  # magic, version, numbers of tensors and of entries
LEAST_BYTES = 12  # of an entry: the length of its name, and its type
MODEL_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(gguf: Path, directory: Path, progress: Progress) -> None:
    """Write config.json, generation_config.json, model.safetensors and the tokenizer into the new `directory`.

    The weights are stored as float32: dequantized GGUF values are sums of products, which no 16-bit type holds exactly.
    The tensors of the whole model are in memory at once.

    Raises:
        UserError: the file is damaged, of another architecture or holds a tensor that has no place in it.
    """
    from gguf import GGUFReader, dequantize
    from safetensors.numpy import save_file

    _check_header(gguf)
    with foreign_errors(f"{gguf.name} is damaged"):
        reader = GGUFReader(gguf)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    config = _config(metadata, tied=all(tensor.name != "output.weight" for tensor in reader.tensors), name=gguf.name)
    progress.start(f"converting {gguf.name}", len(reader.tensors) + 1)
    tensors = {}
    for tensor in reader.tensors:
        name = _tensor_name(tensor.name, gguf.name)
        weight = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        if name.endswith((".q_proj.weight", ".k_proj.weight")):
            heads = config["num_attention_heads" if ".q_proj" in name else "num_key_value_heads"]
            weight = _rotary_halves(weight, heads)
        tensors[name] = weight
        progress.step(name)
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for file, content in (("config.json", config), ("generation_config.json", generation)):
        (directory / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _save_tokenizer(gguf, metadata, directory)
    progress.step("tokenizer")
    progress.finish()


def _check_header(gguf: Path) -> None:
    """Find out whether a file can hold as much as it says, before a reader believes it."""
    with gguf.open("rb") as file:
        header = file.read(HEADER.size)
    magic, _, *counts = HEADER.unpack(header.ljust(HEADER.size, b"\0"))
    if magic != b"GGUF" or sum(counts) > gguf.stat().st_size // LEAST_BYTES:
        raise UserError(f"{gguf.name} is damaged: it is no GGUF file, or too short for what it says to hold")


def _config(metadata: dict[str, Any], tied: bool, name: str) -> dict[str, Any]:
    architecture = metadata["general.architecture"]
    if architecture != "llama":
        raise UserError(f"{name} has the GGUF architecture {architecture!r}; only 'llama' can be converted")
    llama = {key.removeprefix("llama."): value for key, value in metadata.items() if key.startswith("llama.")}
    heads = llama["attention.head_count"]
    eos = metadata["tokenizer.ggml.eos_token_id"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": llama.get("attention.head_count_kv", heads),
        "head_dim": llama.get("rope.dimension_count", llama["embedding_length"] // heads),
        "hidden_act": "silu",
        "max_position_embeddings": llama["context_length"],
        # GGUF holds the float32 next to the decimal number that was meant
        "rms_norm_eps": float(str(np.float32(llama["attention.layer_norm_rms_epsilon"]))),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(llama.get("rope.freq_base", 10000.0))},
        "vocab_size": llama.get("vocab_size", len(metadata["tokenizer.ggml.tokens"])),
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": eos,
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id", eos),
    }


def _tensor_name(name: str, file: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if suffix == "weight" and stem in MODEL_TENSORS:
        return f"{MODEL_TENSORS[stem]}.weight"
    parts = stem.split(".")
    if suffix == "weight" and len(parts) == 3 and parts[0] == "blk" and parts[2] in BLOCK_TENSORS:
        return f"model.layers.{parts[1]}.{BLOCK_TENSORS[parts[2]]}.weight"
    raise UserError(f"{file} holds the tensor {name!r}, which a plain llama model does not have")


def _rotary_halves(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """GGUF interleaves the two halves of every head's rotary dimensions; transformers keeps them apart."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def _save_tokenizer(gguf: Path, metadata: dict[str, Any], directory: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = metadata["llama.context_length"]
    if metadata.get("tokenizer.ggml.pre") == "smollm":  # transformers forgets that digits stand alone
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.save_pretrained(directory)
