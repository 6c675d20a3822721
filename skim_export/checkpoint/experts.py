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

__all__ = [
    "CLAMPED_ALPHA",
    "CLAMPED_LIMIT",
    "EXPERT_PARTS",
    "expert_of",
    "split_experts",
    "unstack_experts",
]

EXPERT_PARTS = ("gate_proj", "up_proj", "down_proj")  # of each expert
STACKED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}  # by the name of all experts' tensor
CLAMPED_ALPHA, CLAMPED_LIMIT = 1.702, 7.0  # of gpt-oss
EXPERT = re.compile(r"(.*\.experts)\.([0-9]+)\.(\w+)")
# Where some models have parts of mixtures, and where transformers has them.
RENAMED = (
    (re.compile(r"\.block_sparse_moe\.(experts\.[0-9]+\.w[123]|gate)\."), r".mlp.\1."),
    (re.compile(r"\.block_sparse_moe\.input_linear\.weight$"), r".block_sparse_moe.experts.gate_up_proj"),
    (re.compile(r"\.block_sparse_moe\.output_linear\.weight$"), r".block_sparse_moe.experts.down_proj"),
    (re.compile(r"\.block_sparse_moe\.router\.layer\."), r".block_sparse_moe.router."),
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
    """Whether a module is experts that have one tensor together, of one of the kinds that `_experts` knows."""
    gate_up, down = (getattr(module, name, None) for name in STACKED)
    if any(getattr(parameter, "ndim", 0) != 3 for parameter in (gate_up, down)):
        return False
    assert gate_up is not None  # it has three dimensions
    assert down is not None
    count, rows, columns = gate_up.shape
    if hasattr(module, "gate_up_proj_bias"):  # of gpt-oss
        return (module.alpha, module.limit) == (CLAMPED_ALPHA, CLAMPED_LIMIT)
    is_plain = len(list(module.parameters())) == 2
    return is_plain and tuple(down.shape) == (count, columns, rows // 2) and hasattr(module, "act_fn")


def _clamped_swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """What experts of gpt-oss have in place of SwiGLU."""
    gate, up = gate.clamp(max=CLAMPED_LIMIT), up.clamp(-CLAMPED_LIMIT, CLAMPED_LIMIT)
    return gate * (CLAMPED_ALPHA * gate).sigmoid() * (up + 1)


def _experts(stacked: Any) -> Any:
    import torch
    from torch import nn

    is_clamped = hasattr(stacked, "gate_up_proj_bias")
    count, outputs, inputs = stacked.gate_up_proj.shape
    hidden, inner = (outputs, inputs // 2) if is_clamped else (inputs, outputs // 2)
    shapes = dict(zip(EXPERT_PARTS, ((hidden, inner), (hidden, inner), (inner, hidden)), strict=True))

    def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return _clamped_swiglu(gate, up) if is_clamped else stacked.act_fn(gate) * up

    class Experts(nn.ModuleList):
        """What takes the place of the experts of transformers, and is called like them.

        Attributes:
            clamped: whether they have `_clamped_swiglu`.
        """

        clamped = is_clamped

        def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
            """Tokens `[T, hidden]` through the experts `[T, k]` that they were given, with their shares `[T, k]`."""
            result = torch.zeros_like(hidden)
            for number in torch.unique(chosen).cpu().tolist():
                tokens, places = torch.where(chosen == number)
                gate, up, down = (self[number][name] for name in EXPERT_PARTS)
                x = hidden[tokens]
                y = down(gated(gate(x), up(x))) * shares[tokens, places, None]
                result = result.index_add(0, tokens, y.to(result.dtype))
            return result

    return Experts(
        nn.ModuleDict({name: nn.Linear(*shape, bias=is_clamped, device="meta") for name, shape in shapes.items()})
        for _ in range(count)
    )


@dataclass(frozen=True)
class _OfExpert:
    """What one expert has of a tensor of all.

    Attributes:
        stacked: `[experts, ...]`.
        expert: which.
        rows: of what the expert has there.
        transposed: whether these are the last dimension of the tensor, not the second.
    """

    stacked: Tensor
    expert: int
    rows: slice
    transposed: bool = False

    @property
    def file(self) -> Path:
        """See `Tensor`."""
        return self.stacked.file

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Tensor`."""
        shape = self.stacked.shape[1:]
        count, *others = shape[::-1] if self.transposed else shape
        return len(range(*self.rows.indices(count))), *others

    def read(self, rows: slice) -> torch.Tensor:
        """See `Tensor`."""
        of_expert = self.stacked.read(slice(self.expert, self.expert + 1))[0]
        return (of_expert.T if self.transposed else of_expert)[self.rows][rows].contiguous()


def split_experts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by their names in `unstack_experts`' network: each expert has tensors of its own."""
    return dict(part for name, tensor in tensors.items() for part in _split(name, tensor, tensors))


def _split(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for pattern, replacement in RENAMED:
        name = pattern.sub(replacement, name)
    prefix, _, last = name.rpartition(".")
    stacked = last.removesuffix("_bias")
    if stacked not in STACKED or not prefix.endswith(".experts"):
        yield name, tensor
        return
    parts, is_bias = STACKED[stacked], last != stacked
    of_gpt_oss = f"{prefix}.{stacked}_bias" in tensors  # inputs before outputs, rows of gate and up in turn
    rows = tensor.shape[-1] if of_gpt_oss else tensor.shape[1]
    for expert in range(tensor.shape[0]):
        for index, part in enumerate(parts):
            half = rows // len(parts)
            chosen = slice(index, None, len(parts)) if of_gpt_oss else slice(index * half, (index + 1) * half)
            found = _OfExpert(tensor, expert, chosen, transposed=of_gpt_oss and not is_bias)
            yield f"{prefix}.{expert}.{part}.{'bias' if is_bias else 'weight'}", found
