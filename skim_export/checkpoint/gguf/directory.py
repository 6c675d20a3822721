"""Hugging Face directories made of GGUF models: with the weights, or only with what says how to read them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from skim_export.checkpoint.cache import cached_directory
from skim_runtime.progress import Progress

from .config import Config, generation_config, gguf_config
from .header import GgufHeader
from .tensors import gguf_tensors
from .tokenizer import save_tokenizer

__all__ = ["CONVERSION", "convert_gguf", "gguf_directory"]

CONVERSION = 1  # to be raised when the conversion changes: it is part of the cached directory's name


def gguf_directory(header: GgufHeader, config: Config, cache: Path) -> Path:
    """The directory with config.json, generation_config.json and the tokenizer of a model, made unless it was before.

    Raises:
        UserError: it cannot be written, or the tokenizer is not known.
    """
    digest = hashlib.sha256(json.dumps([config, header.metadata], sort_keys=True).encode()).hexdigest()
    final = cache / f"{header.name}-{digest[:12]}-{CONVERSION}"
    return cached_directory(final, header.name, lambda directory: _describe(header, config, directory))


def convert_gguf(gguf: Path, directory: Path, progress: Progress) -> None:
    """Write the same and model.safetensors into the new `directory`.

    The weights are stored as float32: dequantized GGUF values are sums of products, which no 16-bit type holds exactly.
    The tensors of the whole model are in memory at once.

    Raises:
        UserError: the file is damaged, of an unknown architecture or holds a tensor that has no place in it.
    """
    from safetensors.torch import save_file

    header = GgufHeader.read((gguf,))
    config = gguf_config(header)
    stored = gguf_tensors(header, config)
    progress.start(f"converting {gguf.name}", len(stored) + 1)
    tensors = {}
    for name, tensor in stored.items():
        tensors[name] = tensor.read()
        progress.step(name)
    _describe(header, config, directory)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    progress.step("tokenizer")
    progress.finish()


def _describe(header: GgufHeader, config: Config, directory: Path) -> None:
    directory.mkdir()
    for file, content in (("config.json", config), ("generation_config.json", generation_config(config))):
        (directory / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(header, directory)
