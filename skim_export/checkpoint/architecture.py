"""What the quantizer and the graph need to know of an architecture.

It is asked of transformers: linear layers are found in the module tree of its network. What is left to say about an
architecture is its `Declaration`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from skim_runtime.errors import UserError, foreign_errors

from .checkpoint import Checkpoint
from .declarations import Declaration, declaration_of
from .skeleton import skeleton

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Architecture", "Linear", "Member", "architecture_of", "linear_bias", "linear_weight"]

# Linear layers with the same input that the graph multiplies with at once, by the name of what they become.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
# Linear layers that the graph takes apart into halves of their rows.
HALVES = {"gate_up_proj": ("gate_proj", "up_proj")}

COMPARED_ROWS = 4096  # of head and embedding at once

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


@dataclass(frozen=True)
class Member:
    """Rows of a module's weight, as a linear layer of the graph holds them.

    Attributes:
        module: path of the module, e.g. "model.layers.3.self_attn.q_proj".
        start: the first row.
        stop: the row behind the last.
    """

    module: str
    start: int
    stop: int

    @property
    def rows(self) -> slice:
        """The rows in the module's weight."""
        return slice(self.start, self.stop)

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@dataclass(frozen=True)
class Linear:
    """One linear layer as it stands in the graph.

    Attributes:
        name: its name in the graph, e.g. "model.layers.3.attn.qkv_proj".
        members: the modules whose rows it holds, in order, e.g. "model.layers.3.self_attn.q_proj", k and v.
        in_features: K.
        out_features: N, the rows of all members.
    """

    name: str
    members: tuple[Member, ...]
    in_features: int
    out_features: int

    @classmethod
    def of(cls, name: str, members: Iterable[Member], in_features: int) -> Linear:
        """A linear layer with the rows of all `members`."""
        members = tuple(members)
        return cls(name, members, in_features, sum(member.count for member in members))

    def places(self) -> Iterator[tuple[Member, slice]]:
        """Every member with where its rows are in this layer."""
        first = 0
        for member in self.members:
            yield member, slice(first, first + member.count)
            first += member.count


@dataclass(frozen=True)
class Architecture:
    """The parts of a model.

    Attributes:
        name: the model class, e.g. "LlamaForCausalLM".
        declaration: what is to be said about it.
        blocks: the linear layers of every decoder block.
        block_modules: module of every decoder block, e.g. "model.layers.3".
        embedding: module of the token embedding.
        norm: module of the norm in front of the head.
        head: module of the language model head.
        others: embeddings and linear layers outside the blocks beside these.
        tied: whether the head is the embedding; its tensor may then be missing from the files.
        vocabulary_size: rows of the embedding.
        hidden_size: columns of the embedding.
        excluded: names of the linear layers, embedding and head among them, that are not packed: their weights stay
            floats, like norms.
    """

    name: str
    declaration: Declaration
    blocks: list[list[Linear]]
    block_modules: list[str]
    embedding: str
    norm: str
    head: str
    others: list[Linear]
    tied: bool
    vocabulary_size: int
    hidden_size: int
    excluded: frozenset[str] = frozenset()

    @property
    def packed_blocks(self) -> list[list[Linear]]:
        """The linear layers of every decoder block that are packed."""
        return [[linear for linear in block if linear.name not in self.excluded] for block in self.blocks]

    @property
    def linears(self) -> list[Linear]:
        """The linear layers of all blocks that are packed, in order."""
        return [linear for block in self.packed_blocks for linear in block]

    @property
    def vocabulary_linears(self) -> list[Linear]:
        """The embedding, the head where it is another matrix, and `others`, unless they are excluded."""
        return [linear for linear in self._vocabulary if linear.name not in self.excluded]

    @property
    def all_linears(self) -> list[Linear]:
        """The linear layers of all blocks, embedding, head and `others`, packed or not."""
        return [*(linear for block in self.blocks for linear in block), *self._vocabulary]

    @property
    def excluded_linears(self) -> list[Linear]:
        """Those that are not packed."""
        return [linear for linear in self.all_linears if linear.name in self.excluded]

    @property
    def _vocabulary(self) -> list[Linear]:
        names = [self.embedding] if self.tied else [self.embedding, self.head]
        return [Linear.of(name, [self._matrix(name)], self.hidden_size) for name in names] + self.others

    @property
    def embedding_linear(self) -> Linear:
        """The embedding as a linear layer, packed or not."""
        return self._vocabulary[0]

    @property
    def head_linear(self) -> Linear:
        """The head as a linear layer; its member is the embedding if they are tied."""
        member = self._matrix(self.embedding if self.tied else self.head)
        return Linear.of(self.head, [member], self.hidden_size)

    @cached_property
    def matrices(self) -> frozenset[str]:
        """The modules of all linear layers, packed or not, embedding and head among them."""
        members = {member.module for linear in self.all_linears for member in linear.members}
        return frozenset(members | {self.head})

    def _matrix(self, module: str) -> Member:
        return Member(module, 0, self.vocabulary_size)


def architecture_of(checkpoint: Checkpoint) -> Architecture:
    """Describe the architecture of a checkpoint, and check that its tensors are those that the configuration asks for.

    Raises:
        UserError: the architecture is not supported; a tensor is missing, has another shape, or belongs to nothing.
    """
    name = checkpoint.architecture_name
    declaration = declaration_of(name)
    _check_config(checkpoint)
    with foreign_errors(f"{checkpoint.path / 'config.json'}: transformers makes no model of it"):
        network = skeleton(checkpoint)
    if (made := type(network).__name__) != name:
        raise UserError(
            f"{checkpoint.path / 'config.json'}: names the architecture {name}, but its model_type "
            f"{checkpoint.config.model_type!r} is that of {made}: correct one of them"
        )
    paths = {module: path for path, module in network.named_modules()}
    head, embedding = paths[network.get_output_embeddings()], paths[network.get_input_embeddings()]
    _check_parts(checkpoint, network)
    tied = _is_tied(checkpoint, head, embedding)
    _check_tensors(checkpoint, network, f"{head}.weight" if tied else None)

    decoder = network.base_model
    blocks = [_linears(paths[block], block, declaration) for block in decoder.layers]
    rows, columns = checkpoint.shape(f"{embedding}.weight")
    modules = [paths[block] for block in decoder.layers]
    norm = paths[_last_norm(decoder, columns)]
    others = _others(network, {head, embedding}, modules)
    return Architecture(name, declaration, blocks, modules, embedding, norm, head, others, tied, rows, columns)


def _others(network: nn.Module, known: set[str], blocks: list[str]) -> list[Linear]:
    """Embeddings and linear layers that are neither `known` nor in blocks."""
    import torch

    return [
        Linear.of(path, [Member(path, 0, len(module.weight))], module.weight.shape[1])
        for path, module in network.named_modules()
        if isinstance(module, torch.nn.Embedding | torch.nn.Linear)
        and path not in known
        and not path.startswith(tuple(f"{block}." for block in blocks))
    ]


def _linears(path: str, block: nn.Module, declaration: Declaration) -> list[Linear]:
    """The linear layers of a decoder block as they stand in the graph."""
    import torch

    found = {
        name: module
        for name, module in block.named_modules()
        if isinstance(module, torch.nn.Linear) and not declaration.keeps_float(name)
    }
    linears: dict[str, Linear] = {}

    def add(name: str, members: list[Member], columns: int) -> None:
        graph_name = f"{path}.{name}".replace(".self_attn.", ".attn.")  # as the model builder names its nodes
        linears.setdefault(graph_name, Linear.of(graph_name, members, columns))

    for name, module in found.items():
        parent, _, last = name.rpartition(".")
        prefix = f"{parent}." if parent else ""
        fused = next((whole for whole, parts in FUSED.items() if last in parts), None)
        parts = [f"{prefix}{part}" for part in FUSED[fused]] if fused else []
        if fused and all(part in found for part in parts):
            add(f"{prefix}{fused}", [_whole(path, part, found[part]) for part in parts], module.in_features)
        elif last in HALVES:
            half = module.out_features // 2
            for index, part in enumerate(HALVES[last]):
                member = Member(f"{path}.{name}", index * half, (index + 1) * half)
                add(f"{prefix}{part}", [member], module.in_features)
        else:
            add(name, [_whole(path, name, module)], module.in_features)
    return list(linears.values())


def _whole(path: str, name: str, module: Any) -> Member:
    return Member(f"{path}.{name}", 0, module.out_features)


def _last_norm(decoder: nn.Module, hidden_size: int) -> nn.Module:
    """The norm in front of the head: the one part of the decoder with a value for each channel."""
    (norm,) = (
        module
        for module in decoder.children()
        if [tuple(parameter.shape) for parameter in module.parameters()] == [(hidden_size,)]
    )
    return norm


def linear_weight(checkpoint: Checkpoint, linear: Linear, rows: slice = slice(None)) -> npt.NDArray[np.float32]:
    """The weight of a linear layer, float32 `[N, K]`: the rows of its members, one after the other; or some rows."""
    start, stop, _ = rows.indices(linear.out_features)
    parts = []
    for member, place in linear.places():
        first, last = max(start, place.start), min(stop, place.stop)
        if first < last:
            offset = member.start - place.start
            parts.append(checkpoint.tensor(f"{member.module}.weight", slice(first + offset, last + offset)).numpy())
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def linear_bias(checkpoint: Checkpoint, linear: Linear) -> npt.NDArray[np.float32] | None:
    """The bias of a linear layer, float32 `[N]`, zero for members without one; None if no member has one."""
    if not any(checkpoint.has(f"{member.module}.bias") for member in linear.members):
        return None
    bias = np.zeros(linear.out_features, np.float32)
    for member, place in linear.places():
        if checkpoint.has(name := f"{member.module}.bias"):
            bias[place] = checkpoint.tensor(name, member.rows).numpy()
    return bias


def _check_config(checkpoint: Checkpoint) -> None:
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


def _check_parts(checkpoint: Checkpoint, network: nn.Module) -> None:
    """Refuse what some models of an architecture have and others have not.

    Raises:
        UserError: there is a mixture of experts.
    """
    file = checkpoint.path / "config.json"
    experts = next((name for name, _ in network.named_parameters() if ".experts." in name), None)
    if experts is not None:
        raise UserError(f"{file}: the model has experts ({experts}); mixtures of experts are not supported")


def _is_tied(checkpoint: Checkpoint, head_module: str, embedding_module: str) -> bool:
    """As transformers decides it: files that hold two different tensors overrule the configuration."""
    if not checkpoint.config.tie_word_embeddings:
        return False
    head, embedding = f"{head_module}.weight", f"{embedding_module}.weight"
    if not (checkpoint.has(head) and checkpoint.has(embedding)):
        return True
    import torch

    if checkpoint.shape(head) != checkpoint.shape(embedding):
        return False
    runs = [slice(start, start + COMPARED_ROWS) for start in range(0, checkpoint.shape(head)[0], COMPARED_ROWS)]
    return all(torch.equal(checkpoint.tensor(head, run), checkpoint.tensor(embedding, run)) for run in runs)


def _check_tensors(checkpoint: Checkpoint, network: Any, optional: str | None) -> None:
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
