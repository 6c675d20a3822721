"""The quantized model in PyTorch, for evaluation: every linear layer holds its dequantized weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from skim_export.checkpoint import Checkpoint, Model
from skim_export.checkpoint.skeleton import skeleton
from skim_export.packed.format import PackedLinear

if TYPE_CHECKING:
    import torch

__all__ = ["dequantized_model"]


def dequantized_model(model: Model, packed: Callable[[str], PackedLinear | None]) -> Any:
    """The transformers network with dequantized weights, float32.

    Args:
        model: the rest (norms and biases) is read from it.
        packed: the packed linear of a unit, or None to keep the model's weights.
    """
    import torch

    checkpoint, architecture = model.checkpoint, model.architecture

    replaced: dict[str, torch.Tensor] = {}
    for linear in architecture.linears:
        weights = packed(linear.name)
        if weights is None:
            continue
        rows = [checkpoint.shape(f"{member}.weight")[0] for member in linear.members]
        parts = np.split(weights.dequantize(), np.cumsum(rows)[:-1])
        for member, part in zip(linear.members, parts, strict=True):
            replaced[f"{member}.weight"] = torch.from_numpy(np.ascontiguousarray(part))
    embedding = packed(architecture.embedding)
    if embedding is not None:
        replaced[f"{architecture.embedding}.weight"] = torch.from_numpy(embedding.dequantize())
    head = embedding if architecture.tied else packed(architecture.head)
    if head is not None:
        replaced[f"{architecture.head}.weight"] = torch.from_numpy(head.dequantize())
    return _with_weights(checkpoint, replaced)


def _with_weights(checkpoint: Checkpoint, replaced: dict[str, torch.Tensor]) -> Any:
    model = skeleton(checkpoint)
    tensors = dict(replaced)
    for name in checkpoint.names:
        if name not in tensors and "rotary_emb" not in name:
            tensors[name] = checkpoint.tensor(name)
    model.load_state_dict(tensors, strict=False, assign=True)
    if model.config.tie_word_embeddings:
        model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise RuntimeError(f"no weights for {', '.join(missing)}")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model
