"""A tiny model of each architecture, exported with random packed weights of 8 bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from skim_export.checkpoint import Model, linear_bias
from skim_export.graph.external_data import save_model
from skim_export.graph.genai_builder import DecoderBuilder
from skim_export.packed import PackedLinear
from skim_export.packed.dequantized import dequantized_model
from skim_runtime.progress import Progress

from .random_packed import random_packed
from .tiny_decoders import tiny_decoder

AFFINE, TABLE = 15, 7  # row classes of 8 bits


@dataclass(frozen=True)
class Exported:
    """A model and what it was made of.

    Attributes:
        directory: the exported directory.
        model: the checkpoint.
        packed: the packed weights by name.
        network: of transformers, with the same weights.
    """

    directory: Path
    model: Model
    packed: dict[str, PackedLinear]
    network: Any

    def reference(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Logits of transformers, float32 `[S, V]`, of tokens `[S]`."""
        with torch.no_grad():
            logits: npt.NDArray[np.float32] = self.network(torch.from_numpy(tokens[None])).logits[0].numpy()
        return logits


def packed_weights(model: Model, seed: int = 0) -> dict[str, PackedLinear]:
    """Random packed weights, of a size that attention has something to look at, with the checkpoint's biases."""
    rng = np.random.default_rng(seed)
    units = {}
    for linear in (*model.architecture.linears, *model.architecture.vocabulary_linears):
        kind = AFFINE if linear in model.architecture.vocabulary_linears else TABLE
        packed = random_packed(rng, linear.out_features, linear.in_features, [kind])
        spread = packed.dequantize().std() * np.sqrt(linear.in_features) / 1.5
        bias = linear_bias(model.checkpoint, linear)
        units[linear.name] = replace(
            packed,
            row_scale=(packed.row_scale / spread).astype(np.float16),
            bias=packed.bias if bias is None else bias,
        )
    if model.architecture.tied:
        units[model.architecture.head] = units[model.architecture.embedding]
    return units


def build(name: str, path: Path) -> Exported:
    """Export the case of a name."""
    model = Model.open(tiny_decoder(name, path / "hf"))
    packed, output = packed_weights(model), path / "onnx"
    output.mkdir()
    builder = DecoderBuilder(model, packed.__getitem__, output / "model.onnx", accuracy_level=0)
    save_model(builder.build(), output / "model.onnx", Progress())
    builder.write_configuration()
    return Exported(output, model, packed, dequantized_model(model, packed.__getitem__))
