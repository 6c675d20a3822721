"""The transformers model of a checkpoint, without its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch
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


def load_parameters(checkpoint: Checkpoint, module: nn.Module, name: str, device: torch.device | None = None) -> None:
    """Read all parameters of a module of the skeleton as float32; `name` is where the checkpoint keeps them.

    They come to a device, or stay on the CPU if it is None.

    `module.to("meta")` forgets them again.
    """
    names = [parameter for parameter, _ in module.named_parameters()]
    parameters = {part: checkpoint.tensor(f"{name}.{part}").to(device=device) for part in names}
    module.load_state_dict(parameters, assign=True)
    module.requires_grad_(False)
