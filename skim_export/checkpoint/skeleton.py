"""The transformers model of a checkpoint, without its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load_parameters", "skeleton"]


def skeleton(checkpoint: Checkpoint) -> Any:
    """The transformers model in evaluation mode, its parameters on the meta device: it takes next to no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(checkpoint.config, dtype=torch.float32).eval()
    # Its buffers are computed, not stored: on the meta device they are lost.
    decoder = model.base_model
    decoder.rotary_emb = type(decoder.rotary_emb)(config=checkpoint.config)
    return model


def load_parameters(checkpoint: Checkpoint, module: nn.Module, name: str) -> None:
    """Read all parameters of a module of the skeleton as float32; `name` is where the checkpoint keeps them.

    `module.to("meta")` forgets them again.
    """
    names = [parameter for parameter, _ in module.named_parameters()]
    module.load_state_dict({part: checkpoint.tensor(f"{name}.{part}") for part in names}, assign=True)
    module.requires_grad_(False)
