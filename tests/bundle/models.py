"""Tiny exported models of all that bundles can run, and what they compute in double precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from skim_export.checkpoint import Model
from skim_export.graph.external_data import save_model
from skim_export.graph.genai_builder import DecoderBuilder
from skim_export.packed import CLASSES as ALL_CLASSES
from skim_export.packed.dequantized import dequantized_model
from skim_runtime.progress import Progress

from ..random_packed import random_units
from ..tiny_decoders import DECODERS, LLAMA3, MIXTURES
from ..tiny_models import tiny_llama, tiny_mistral

ROTARY = {**LLAMA3, "original_max_position_embeddings": 128}
MODELS = {
    "llama": lambda path: tiny_llama(path),
    "biased": lambda path: tiny_llama(path, tie=False, attention_bias=True, mlp_bias=True),
    "grouped": lambda path: tiny_llama(path, num_attention_heads=8, num_key_value_heads=2, head_dim=12),
    "wide_heads": lambda path: tiny_llama(path, head_dim=32, layers=1),
    "windowed": lambda path: tiny_mistral(path, sliding_window=16),
    "llama3": lambda path: tiny_llama(path, rope_parameters=ROTARY),
    "relu": lambda path: tiny_llama(path, hidden_act="relu", layers=1),
    "gelu": lambda path: tiny_llama(path, hidden_act="gelu", layers=1),
    "gelu_tanh": lambda path: tiny_llama(path, hidden_act="gelu_pytorch_tanh", layers=1),
    "float16": lambda path: tiny_llama(path, layers=1),
    "all_widths": lambda path: tiny_llama(path, layers=1),
}
# What of each, test_lowering.py says.
MISSING = {"gemma4", "gemma4-e", "gemma4-unified", "ministral3", "phi3-long", "hunyuan", "lfm2", "qwen3_5"}
SUPPORTED = sorted(DECODERS.keys() - MISSING - MIXTURES)
CLASSES = {
    "float16": {"classes": (0, 3, 5, 10), "vocabulary_classes": (2, 14), "entries": np.float16},
    "all_widths": {"classes": range(ALL_CLASSES), "vocabulary_classes": range(ALL_CLASSES)},
}


@dataclass(frozen=True)
class TinyModel:
    """An exported model, and the torch model with the same weights in double precision."""

    path: Path
    torch_model: torch.nn.Module

    def logits(self, tokens):
        """Logits `[S, V]` of the tokens `[S]`."""
        with torch.no_grad():
            return self.torch_model(torch.tensor([tokens])).logits[0].numpy()


def export_tiny(name, path):
    """Export one of the models with random packed weights."""
    model = Model.open(MODELS[name](path / "hf"))
    units = random_units(model, **CLASSES.get(name, {}))
    output = path / "model"
    output.mkdir()
    builder = DecoderBuilder(model, units.__getitem__, output / "model.onnx", 0)
    save_model(builder.build(), output / "model.onnx", Progress())
    builder.write_configuration()
    return TinyModel(output, dequantized_model(model, units.__getitem__).double())


def random_tokens(count, seed=0):
    return np.random.default_rng(seed).integers(2, 300, count).tolist()
