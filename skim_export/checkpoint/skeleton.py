"""The transformers model of a checkpoint, without its weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .checkpoint import Checkpoint
from .experts import unstack_experts

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["forget_parameters", "load_parameters", "rotary_embedding", "skeleton", "state_once"]

_LOCK = threading.Lock()  # what is changed while a network is made belongs to the whole process


def skeleton(checkpoint: Checkpoint) -> Any:
    """The transformers model in evaluation mode, its parameters on the meta device: it takes next to no memory.

    Experts have linear layers of their own (`unstack_experts`). Buffers, such as the frequencies of rotary embeddings,
    are computed and not stored, so they are there.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with _LOCK, _parameters_on_meta(), no_init_weights():  # random values for nothing would take most of the time
        network = AutoModelForCausalLM.from_config(checkpoint.config, dtype=torch.float32)
    network.tie_weights()
    unstack_experts(network)
    return network.eval()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters of modules that are made here take no memory; all other tensors are ordinary ones."""
    from torch import nn

    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def rotary_embedding(network: Any) -> Any:
    """The module of a network that makes its rotary tables."""
    decoder = network.base_model
    return decoder.rotary_emb if hasattr(decoder, "rotary_emb") else decoder.pos_emb  # of LFM2-MoE


def state_once(network: Any) -> dict[str, torch.Tensor]:
    """What a checkpoint stores of a network: parameters, a head that is the embedding not among them, and buffers."""
    state = network.state_dict()
    buffers = {name: buffer for name, buffer in network.named_buffers() if name in state}
    return {**dict(network.named_parameters()), **buffers}


def load_parameters(checkpoint: Checkpoint, module: nn.Module, name: str, device: torch.device | None = None) -> None:
    """Read all that is stored of a module of the skeleton as float32; `name` is where the checkpoint keeps it.

    It comes to a device, or stays on the CPU if it is None. `forget_parameters(module)` forgets it again.
    """
    tensors = {part: checkpoint.tensor(f"{name}.{part}").to(device=device) for part in module.state_dict()}
    module.load_state_dict(tensors, assign=True)
    module.requires_grad_(False)


def forget_parameters(module: nn.Module) -> None:
    """Take the memory of all parameters of a module; buffers stay."""
    import torch

    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, torch.nn.Parameter(parameter.to("meta"), requires_grad=False))
