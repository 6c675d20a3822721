"""What the quantizer and the graph need to know of an architecture.

It is asked of transformers: linear layers are found in the module tree of its network. What is left to say about an
architecture is its `Declaration`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from skim_runtime.errors import UserError, foreign_errors

from .checkpoint import Checkpoint
from .checks import check_config, check_parts, check_tensors
from .declarations import Declaration, declaration_of
from .experts import expert_of
from .linear import Linear, Member
from .skeleton import skeleton

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Architecture", "architecture_of"]

# Linear layers with the same input that the graph multiplies with at once, by the name of what they become.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
# Linear layers that the graph takes apart into halves of their rows.
HALVES = {"gate_up_proj": ("gate_proj", "up_proj")}

COMPARED_ROWS = 4096  # of head and embedding at once


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
    def token_linears(self) -> list[Linear]:
        """Those of them that calibration knows the sensitivity of: embedding and head, without `others`."""
        return [linear for linear in self.vocabulary_linears if linear not in self.others]

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
    check_config(checkpoint)
    with foreign_errors(f"{checkpoint.path / 'config.json'}: transformers makes no model of it"):
        network = skeleton(checkpoint)
    if (made := type(network).__name__) != name:
        raise UserError(
            f"{checkpoint.path / 'config.json'}: names the architecture {name}, but its model_type "
            f"{checkpoint.config.model_type!r} is that of {made}: correct one of them"
        )
    paths = {module: path for path, module in network.named_modules()}
    head, embedding = paths[network.get_output_embeddings()], paths[network.get_input_embeddings()]
    check_parts(checkpoint, network, mixtures=declaration.router is not None)
    tied = _is_tied(checkpoint, head, embedding)
    check_tensors(checkpoint, network, f"{head}.weight" if tied else None)

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

    experts: dict[str, list[Member]] = {}
    for name, module in found.items():
        if (expert := expert_of(name)) is not None:
            whole, _, part = expert
            experts.setdefault(f"{whole}.{part}", []).append(_whole(path, name, module))
            continue
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
    for name, members in experts.items():
        add(name, members, found[members[0].module.removeprefix(f"{path}.")].in_features)
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
