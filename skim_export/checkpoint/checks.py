"""Whether configuration and tensors of a checkpoint go together, before anything is made of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from skim_runtime.errors import UserError

from .checkpoint import Checkpoint
from .experts import expert_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LEAST_POSITIONS", "check_config", "check_parts", "check_tensors"]

# The most that config.json may say. Rotary tables have a row for each position; the rest is far above any model's.
LEAST_POSITIONS = 2  # the model builder makes no tables of one
# Where it isn't 1; a convolution over one token has no state.
LEAST = {"max_position_embeddings": LEAST_POSITIONS, "conv_L_cache": 2, "linear_conv_kernel_dim": 2}
COUNTS = {
    "max_position_embeddings": 1 << 24,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "vocab_size": 1 << 24,
    "conv_L_cache": 1 << 10,
    "linear_conv_kernel_dim": 1 << 10,
}
EPSILONS = ("rms_norm_eps", "norm_eps")
ACTIVATIONS = ("hidden_act", "hidden_activation")

# Tensors that old checkpoints carry along and that transformers computes itself.
DERIVED = r"\.rotary_emb\.inv_freq$"


def check_config(checkpoint: Checkpoint) -> None:
    """Compare what config.json says with the tensors, as far as a module of absurd size would come of it otherwise.

    Raises:
        UserError: a value is out of its range.
    """
    config, file = checkpoint.config, checkpoint.path / "config.json"
    pattern = re.compile(r"model\.layers\.([0-9]{1,9})\..*")
    blocks = {int(match[1]) for match in map(pattern.fullmatch, checkpoint.names) if match}
    if config.num_hidden_layers != len(blocks):
        raise UserError(
            f"{file}: num_hidden_layers is {config.num_hidden_layers}, the tensors are of {len(blocks)} blocks"
        )
    for name, most in COUNTS.items():
        least = LEAST.get(name, 1)
        for layer in config.per_layer_config:
            value = getattr(layer, name, None)
            if value is not None and not (isinstance(value, int) and least <= value <= most):
                raise UserError(f"{file}: {name} must be a whole number from {least} to {most}, is {value!r}")
    if getattr(config, "hidden_size_per_layer_input", 0) and config.vocab_size_per_layer_input < config.vocab_size:
        few = config.vocab_size_per_layer_input
        raise UserError(f"{file}: vocab_size_per_layer_input is {few}, fewer than vocab_size: {config.vocab_size}")
    if (rotated := getattr(config, "no_rope_layers", None)) and len(rotated) != len(blocks):
        raise UserError(f"{file}: no_rope_layers has {len(rotated)} values, num_hidden_layers is {len(blocks)}")
    from transformers.activations import ACT2FN

    for name in ACTIVATIONS:
        if (activation := getattr(config, name, None)) is not None and activation not in ACT2FN:
            raise UserError(f"{file}: {name} is {activation!r}, an activation that transformers does not know")
    for name in EPSILONS:
        epsilon = getattr(config, name, 0)
        if not isinstance(epsilon, float | int) or not 0 <= epsilon < 1:
            raise UserError(f"{file}: {name} must be at least 0 and below 1, is {epsilon!r}")


def check_parts(checkpoint: Checkpoint, network: nn.Module, *, mixtures: bool) -> None:
    """Refuse what some models of an architecture have and others have not.

    Args:
        checkpoint: the model.
        network: of transformers.
        mixtures: whether there may be mixtures of experts.

    Raises:
        UserError: there is one, and there may be none or none of its kind.
    """
    file = checkpoint.path / "config.json"
    for name, _ in network.named_parameters():
        if ".experts." in name and not (mixtures and expert_of(name.rpartition(".")[0])):
            what = "of a kind that is" if mixtures else "and mixtures in this architecture are"
            raise UserError(f"{file}: the model has experts ({name}), {what} not supported")


def check_tensors(checkpoint: Checkpoint, network: Any, optional: str | None) -> None:
    """Find out whether the tensors are those that the network has.

    Args:
        checkpoint: the tensors.
        network: of transformers.
        optional: name of a tensor that may be missing.

    Raises:
        UserError: one is missing, has another shape, or belongs to nothing.
    """
    parameters = network.state_dict()
    unused = [DERIVED, *(getattr(network.base_model, "_keys_to_ignore_on_load_unexpected", None) or [])]
    for name, parameter in parameters.items():
        if name == optional and not checkpoint.has(name):
            continue
        shape, expected = list(checkpoint.shape(name)), list(parameter.shape)
        if shape != expected:
            raise UserError(f"tensor {name} of model {checkpoint.path} has shape {shape}; config.json means {expected}")
    for name in checkpoint.names:
        if name not in parameters and name != optional and not any(re.search(pattern, name) for pattern in unused):
            raise UserError(f"model {checkpoint.path} has the tensor {name}, which is no part of its architecture")
