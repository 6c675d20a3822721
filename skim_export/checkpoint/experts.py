"""Mixtures of experts: the experts of a layer as linear layers of their own, whatever way they are stored."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tensors import Tensor

if TYPE_CHECKING:
    import torch

__all__ = ["EXPERT_PARTS", "expert_of", "split_experts", "unstack_experts"]

EXPERT_PARTS = ("gate_proj", "up_proj", "down_proj")  # of each expert
STACKED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}  # by the name of all experts' tensor
EXPERT = re.compile(r"(.*\.experts)\.([0-9]+)\.(\w+)")
# Where some models have parts of mixtures, and where transformers has them.
RENAMED = (
    (re.compile(r"\.block_sparse_moe\.(experts|gate)\."), r".mlp.\1."),
    (re.compile(r"(\.experts\.[0-9]+)\.w1\."), r"\1.gate_proj."),
    (re.compile(r"(\.experts\.[0-9]+)\.w2\."), r"\1.down_proj."),
    (re.compile(r"(\.experts\.[0-9]+)\.w3\."), r"\1.up_proj."),
)


def expert_of(module: str) -> tuple[str, int, str] | None:
    """Of what experts a linear layer is, its expert's number and which of its parts; None if it is of no expert.

    Args:
        module: its path, e.g. "mlp.experts.3.gate_proj".
    """
    match = EXPERT.fullmatch(module)
    return None if match is None or match[3] not in EXPERT_PARTS else (match[1], int(match[2]), match[3])


def unstack_experts(network: Any) -> None:
    """Give all experts of a network of transformers linear layers of their own, in place of one parameter for all.

    So they are what other linear layers are, to whoever looks for these.
    """
    for path, module in list(network.named_modules()):
        if _is_stacked(module):
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, _experts(module))


def _is_stacked(module: Any) -> bool:
    """Whether a module is experts that are gated, without biases, and have rows for outputs."""
    gate_up, down = (getattr(module, name, None) for name in STACKED)
    if any(getattr(parameter, "ndim", 0) != 3 for parameter in (gate_up, down)):
        return False
    assert gate_up is not None  # it has three dimensions
    assert down is not None
    count, rows, columns = gate_up.shape
    is_plain = len(list(module.parameters())) == 2
    return is_plain and tuple(down.shape) == (count, columns, rows // 2) and hasattr(module, "act_fn")


def _experts(stacked: Any) -> Any:
    import torch
    from torch import nn

    activation = stacked.act_fn  # no module of the list

    class Experts(nn.ModuleList):
        """What takes the place of the experts of transformers, and is called like them."""

        def __init__(self) -> None:
            count, rows, columns = stacked.gate_up_proj.shape
            shapes = dict(
                zip(EXPERT_PARTS, ((columns, rows // 2), (columns, rows // 2), (rows // 2, columns)), strict=True)
            )
            super().__init__(
                nn.ModuleDict({name: nn.Linear(*shape, bias=False, device="meta") for name, shape in shapes.items()})
                for _ in range(count)
            )

        def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
            """Tokens `[T, hidden]` through the experts `[T, k]` that they were given, with their shares `[T, k]`."""
            result = torch.zeros_like(hidden)
            for number in torch.unique(chosen).tolist():
                tokens, places = torch.where(chosen == number)
                gate, up, down = (self[number][name] for name in EXPERT_PARTS)
                x = hidden[tokens]
                y = down(activation(gate(x)) * up(x)) * shares[tokens, places, None]
                result = result.index_add(0, tokens, y.to(result.dtype))
            return result

    return Experts()


@dataclass(frozen=True)
class _ExpertRows:
    """Some rows of one expert in a tensor of all.

    Attributes:
        stacked: `[experts, rows, columns]`.
        expert: which.
        first: the first of the rows.
        count: how many.
    """

    stacked: Tensor
    expert: int
    first: int
    count: int

    @property
    def file(self) -> Path:
        """See `Tensor`."""
        return self.stacked.file

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Tensor`."""
        return self.count, self.stacked.shape[2]

    def read(self, rows: slice) -> torch.Tensor:
        """See `Tensor`."""
        of_expert = self.stacked.read(slice(self.expert, self.expert + 1))[0]
        return of_expert[self.first : self.first + self.count][rows].contiguous()


def split_experts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by their names in `unstack_experts`' network: each expert has tensors of its own."""
    return dict(part for name, tensor in tensors.items() for part in _split(name, tensor))


def _split(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    for pattern, replacement in RENAMED:
        name = pattern.sub(replacement, name)
    prefix, _, last = name.rpartition(".")
    if last not in STACKED or not prefix.endswith(".experts") or len(tensor.shape) != 3:
        yield name, tensor
        return
    parts = STACKED[last]
    rows = tensor.shape[1] // len(parts)
    for expert in range(tensor.shape[0]):
        for index, part in enumerate(parts):
            yield f"{prefix}.{expert}.{part}.weight", _ExpertRows(tensor, expert, index * rows, rows)
