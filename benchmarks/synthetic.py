"""Checkpoints of true shapes with random weights, to measure what a model of that size takes without downloading it.

What is written is a directory as from the Hugging Face Hub: shards of safetensors in bfloat16 with their index,
config.json, and a byte-level tokenizer (its 258 tokens are a part of the vocabulary, which has the model's size). Rows
are windows, at random places, into one bank of heavy-tailed random values, under scales of rows and columns and with a
few outliers; so seven thousand million of them take a minute or two, and next to no memory.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from skim_export.checkpoint import Checkpoint, architecture_of, load_recipes
from skim_export.checkpoint.skeleton import skeleton
from skim_export.work.files import staged_directory, write_json
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress
from skim_runtime.progress_bar import ProgressBar

__all__ = ["add_arguments", "make_checkpoint", "run"]

COMMON = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "dtype": "bfloat16"}
CONFIGS: dict[str, dict[str, Any]] = {
    "mistral-7b": {  # as Mistral-7B-Instruct-v0.3
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 32768,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "sliding_window": None,
    },
    "llama-3-70b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_theta": 5e5,
    },
    "qwen3-30b-a3b": {
        **load_recipes()["qwen3-30b-a3b"].config,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "rope_theta": 1e6,
    },
}

SHARD_BYTES = 5_000_000_000
CHUNK_BYTES = 64 << 20  # of float32 values in memory at once
BANK = 1 << 24  # random values that all rows are cut out of
FREEDOM = 6  # degrees of Student's t distribution, whose tails are about as heavy as those of trained weights
ROW_SPREAD, COLUMN_SPREAD = 0.3, 0.15  # standard deviations of the logarithms of the scales
OUTLIERS, OUTLIER_SIZE = 2e-5, 8.0  # their share of the weights, and how many times larger they are


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--like", required=True, choices=list(CONFIGS), help="the model whose shapes are taken")
    parser.add_argument("--layers", type=int, help="decoder blocks, if fewer than that model has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="directory to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write a checkpoint."""
    config = {**COMMON, **CONFIGS[args.like]}
    if args.layers is not None:
        if not 1 <= args.layers <= config["num_hidden_layers"]:
            raise UserError(f"--layers {args.layers}: must be from 1 to {config['num_hidden_layers']}")
        config["num_hidden_layers"] = args.layers
    if args.output.exists():
        raise UserError(f"--output {args.output}: exists")
    with ProgressBar() as progress:
        make_checkpoint(config, args.output, args.seed, progress)
    checkpoint = Checkpoint(args.output)
    architecture_of(checkpoint)
    count = checkpoint.parameter_count
    Console().print(f"wrote {args.output}: {count / 1e9:.2f} G weights, {2 * count / 1e9:.1f} GB", highlight=False)


def make_checkpoint(
    config: dict[str, Any], output: Path, seed: int, progress: Progress, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a checkpoint of random weights; the same seed gives the same bytes.

    Args:
        config: the content of config.json.
        output: directory to write.
        seed: of the weights.
        progress: told of every tensor.
        shard_bytes: of one file of weights, at most, unless a tensor alone takes more.
    """
    random = np.random.default_rng(seed)
    with staged_directory(output, last="config.json") as stage:
        ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        write_json(stage / "config.json", {**config, **ends})
        write_json(stage / "generation_config.json", ends)
        _byte_tokenizer().save_pretrained(stage)
        shapes = _shapes(stage)
        shards = _shards(shapes, shard_bytes)
        weights = _Weights(random, max(shape[-1] for shape in shapes.values()))
        progress.start("writing weights", len(shapes))
        files: dict[str, str] = {}
        for index, names in enumerate(shards):
            file = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
            files |= dict.fromkeys(names, file)
            with (stage / file).open("wb") as stream:
                _write_header(stream, {name: shapes[name] for name in names})
                for name in names:
                    for chunk in weights.tensor(shapes[name]):
                        stream.write(chunk.bfloat16().view(torch.uint8).numpy().data)
                    progress.step(name)
        total = 2 * sum(math.prod(shape) for shape in shapes.values())
        write_json(stage / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": files})
        progress.finish()


def _shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """The parameters that the configuration in a directory means, and their shapes."""
    from transformers import AutoConfig

    class Shell:  # what `skeleton` asks of a checkpoint, whose weights there are none of yet
        config = AutoConfig.from_pretrained(directory)

    return {name: tuple(p.shape) for name, p in skeleton(Shell()).named_parameters()}  # type: ignore[arg-type]


def _shards(shapes: dict[str, tuple[int, ...]], most: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        nbytes = 2 * math.prod(shape)
        if shards[-1] and used + nbytes > most:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += nbytes
    return shards


def _write_header(stream: BinaryIO, shapes: dict[str, tuple[int, ...]]) -> None:
    """The header of a safetensors file; the tensors follow in the same order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)


class _Weights:
    """Random weights in rows of at most `columns`."""

    def __init__(self, random: np.random.Generator, columns: int) -> None:
        self._random = random
        bank = random.standard_t(FREEDOM, BANK + columns).astype(np.float32)
        bank[random.random(bank.size) < OUTLIERS] *= OUTLIER_SIZE
        self._bank = bank

    def tensor(self, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """A parameter in runs of rows: a norm about 1, or a matrix that keeps the size of normed inputs."""
        if len(shape) == 1:
            yield torch.from_numpy(self._scales(shape[0], COLUMN_SPREAD))
            return
        rows, columns = shape
        column_scale = self._scales(columns, COLUMN_SPREAD) / np.float32(math.sqrt(columns))
        windows = np.lib.stride_tricks.sliding_window_view(self._bank, columns)
        step = max(1, CHUNK_BYTES // (4 * columns))
        for start in range(0, rows, step):
            count = min(step, rows - start)
            weight = windows[self._random.integers(BANK, size=count)]
            weight *= self._scales(count, ROW_SPREAD)[:, None]
            weight *= column_scale
            yield torch.from_numpy(weight)

    def _scales(self, count: int, spread: float) -> npt.NDArray[np.float32]:
        return np.exp(self._random.normal(0, spread, count)).astype(np.float32)


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a token for every byte, behind <s> and </s>: it encodes any text."""
    special = ["<s>", "</s>"]
    symbols = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    return fast
