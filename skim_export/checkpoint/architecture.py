"""What the quantizer and the graph need to know of an architecture."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from skim_runtime.errors import UserError, foreign_errors

from .checkpoint import Checkpoint
from .skeleton import skeleton

if TYPE_CHECKING:
    import torch

__all__ = ["Architecture", "Linear", "architecture_of", "linear_bias", "linear_weight"]


@dataclass(frozen=True)
class Layout:
    """Where an architecture keeps its parts.

    Attributes:
        block: module path of a decoder block, with the block's number left open.
        units: per linear layer of a block as it stands in the graph, its modules; several modules with the same input
            are fused into one, their rows one after the other.
        embedding: module of the token embedding.
        norm: module of the norm in front of the head.
        head: module of the language model head.
    """

    block: str
    units: dict[str, tuple[str, ...]]
    embedding: str
    norm: str
    head: str


LLAMA = Layout(
    block="model.layers.{}",
    units={
        "attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attn.o_proj": ("self_attn.o_proj",),
        "mlp.gate_proj": ("mlp.gate_proj",),
        "mlp.up_proj": ("mlp.up_proj",),
        "mlp.down_proj": ("mlp.down_proj",),
    },
    embedding="model.embed_tokens",
    norm="model.norm",
    head="lm_head",
)

LAYOUTS = {"LlamaForCausalLM": LLAMA, "MistralForCausalLM": LLAMA}

COMPARED_ROWS = 4096  # of head and embedding at once

# The most that config.json may say. Rotary tables have a row for each position; the rest is far above any model's.
LEAST_POSITIONS = 2  # the model builder makes no tables of one
COUNTS = {
    "max_position_embeddings": 1 << 24,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "vocab_size": 1 << 24,
}

# Tensors that old checkpoints carry along and that transformers computes itself.
DERIVED = re.compile(r".*\.rotary_emb\.inv_freq")


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
    members: tuple[str, ...]
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Architecture:
    """The parts of a model.

    Attributes:
        name: the model class, e.g. "LlamaForCausalLM".
        blocks: the linear layers of every decoder block.
        block_modules: module of every decoder block, e.g. "model.layers.3".
        embedding: module of the token embedding.
        norm: module of the norm in front of the head.
        head: module of the language model head.
        tied: whether the head is the embedding; its tensor may then be missing from the files.
        vocabulary_size: rows of the embedding.
        hidden_size: columns of the embedding.
        excluded: names of the linear layers, embedding and head among them, that are not packed: their weights stay
            floats, like norms.
    """

    name: str
    blocks: list[list[Linear]]
    block_modules: list[str]
    embedding: str
    norm: str
    head: str
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
        """The embedding, and the head where it is another matrix, as linear layers, unless they are excluded."""
        return [linear for linear in self._vocabulary if linear.name not in self.excluded]

    @property
    def all_linears(self) -> list[Linear]:
        """The linear layers of all blocks, embedding and head, packed or not."""
        return [*(linear for block in self.blocks for linear in block), *self._vocabulary]

    @property
    def excluded_linears(self) -> list[Linear]:
        """Those that are not packed."""
        return [linear for linear in self.all_linears if linear.name in self.excluded]

    @property
    def _vocabulary(self) -> list[Linear]:
        names = [self.embedding] if self.tied else [self.embedding, self.head]
        return [Linear(name, (name,), self.hidden_size, self.vocabulary_size) for name in names]

    @property
    def head_linear(self) -> Linear:
        """The head as a linear layer; its member is the embedding if they are tied."""
        member = self.embedding if self.tied else self.head
        return Linear(self.head, (member,), self.hidden_size, self.vocabulary_size)


def architecture_of(checkpoint: Checkpoint) -> Architecture:
    """Describe the architecture of a checkpoint, and check that its tensors are those that the configuration asks for.

    Raises:
        UserError: the architecture is not supported; a tensor is missing, has another shape, or belongs to nothing.
    """
    name = checkpoint.architecture_name
    if name not in LAYOUTS:
        raise UserError(f"architecture {name} is not supported; supported: {', '.join(LAYOUTS)}")
    layout = LAYOUTS[name]
    _check_config(checkpoint, layout)
    parameters = dict(_skeleton(checkpoint).named_parameters(remove_duplicate=False))
    tied = _is_tied(checkpoint, layout)
    _check_tensors(checkpoint, parameters, f"{layout.head}.weight" if tied else None)

    block_modules = [layout.block.format(i) for i in range(checkpoint.config.num_hidden_layers)]
    blocks = []
    for module in block_modules:
        linears = []
        for unit, parts in layout.units.items():
            members = tuple(f"{module}.{part}" for part in parts)
            shapes = [checkpoint.shape(f"{member}.weight") for member in members]
            linears.append(Linear(f"{module}.{unit}", members, shapes[0][1], sum(rows for rows, _ in shapes)))
        blocks.append(linears)
    rows, columns = checkpoint.shape(f"{layout.embedding}.weight")
    return Architecture(name, blocks, block_modules, layout.embedding, layout.norm, layout.head, tied, rows, columns)


def linear_weight(checkpoint: Checkpoint, linear: Linear, rows: slice = slice(None)) -> npt.NDArray[np.float32]:
    """The weight of a linear layer, float32 `[N, K]`: the rows of its members, one after the other; or some rows."""
    start, stop, _ = rows.indices(linear.out_features)
    parts, first = [], 0
    for member in linear.members:
        name = f"{member}.weight"
        count = checkpoint.shape(name)[0]
        part = slice(max(start - first, 0), min(stop - first, count))
        if part.start < part.stop:
            parts.append(checkpoint.tensor(name, part).numpy())
        first += count
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def linear_bias(checkpoint: Checkpoint, linear: Linear) -> npt.NDArray[np.float32] | None:
    """The bias of a linear layer, float32 `[N]`, zero for members without one; None if no member has one."""
    names = [f"{member}.bias" for member in linear.members]
    if not any(checkpoint.has(name) for name in names):
        return None
    parts = []
    for member, name in zip(linear.members, names, strict=True):
        rows = checkpoint.shape(f"{member}.weight")[0]
        parts.append(checkpoint.tensor(name).numpy() if checkpoint.has(name) else np.zeros(rows, np.float32))
    return np.concatenate(parts)


def _check_config(checkpoint: Checkpoint, layout: Layout) -> None:
    """Compare what config.json says with the tensors, as far as a module of absurd size would come of it otherwise.

    Raises:
        UserError: a value is out of its range.
    """
    config, file = checkpoint.config, checkpoint.path / "config.json"
    pattern = re.compile(re.escape(layout.block).replace(re.escape("{}"), "([0-9]{1,9})") + r"\..*")
    blocks = {int(match[1]) for match in map(pattern.fullmatch, checkpoint.names) if match}
    if config.num_hidden_layers != len(blocks):
        raise UserError(
            f"{file}: num_hidden_layers is {config.num_hidden_layers}, the tensors are of {len(blocks)} blocks"
        )
    for name, most in COUNTS.items():
        value = getattr(config, name, None)
        least = LEAST_POSITIONS if name == "max_position_embeddings" else 1
        if value is not None and not (isinstance(value, int) and least <= value <= most):
            raise UserError(f"{file}: {name} must be a whole number from {least} to {most}, is {value!r}")
    from transformers.activations import ACT2FN

    if (activation := getattr(config, "hidden_act", None)) is not None and activation not in ACT2FN:
        raise UserError(f"{file}: hidden_act is {activation!r}, an activation that transformers does not know")
    epsilon = getattr(config, "rms_norm_eps", 0)
    if not isinstance(epsilon, float | int) or not 0 <= epsilon < 1:
        raise UserError(f"{file}: rms_norm_eps must be at least 0 and below 1, is {epsilon!r}")


def _skeleton(checkpoint: Checkpoint) -> Any:
    with foreign_errors(f"{checkpoint.path / 'config.json'}: transformers makes no model of it"):
        return skeleton(checkpoint)


def _is_tied(checkpoint: Checkpoint, layout: Layout) -> bool:
    """As transformers decides it: files that hold two different tensors overrule the configuration."""
    if not checkpoint.config.tie_word_embeddings:
        return False
    head, embedding = f"{layout.head}.weight", f"{layout.embedding}.weight"
    if not (checkpoint.has(head) and checkpoint.has(embedding)):
        return True
    import torch

    if checkpoint.shape(head) != checkpoint.shape(embedding):
        return False
    runs = [slice(start, start + COMPARED_ROWS) for start in range(0, checkpoint.shape(head)[0], COMPARED_ROWS)]
    return all(torch.equal(checkpoint.tensor(head, run), checkpoint.tensor(embedding, run)) for run in runs)


def _check_tensors(checkpoint: Checkpoint, parameters: dict[str, torch.Tensor], optional: str | None) -> None:
    for name, parameter in parameters.items():
        if name == optional and not checkpoint.has(name):
            continue
        shape, expected = list(checkpoint.shape(name)), list(parameter.shape)
        if shape != expected:
            raise UserError(f"tensor {name} of model {checkpoint.path} has shape {shape}; config.json means {expected}")
    for name in checkpoint.names:
        if name not in parameters and name != optional and not DERIVED.fullmatch(name):
            raise UserError(f"model {checkpoint.path} has the tensor {name}, which is no part of its architecture")
