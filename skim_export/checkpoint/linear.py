"""Linear layers as they stand in the graph, and their weights in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .checkpoint import Checkpoint
from .experts import EXPERT_PARTS, expert_of

__all__ = ["Linear", "Member", "linear_bias", "linear_weight"]


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

    @property
    def of_experts(self) -> bool:
        """Whether its members are experts, of which a token reaches a few."""
        return expert_of(self.members[0].module) is not None

    @property
    def inputs_differ(self) -> bool:
        """Whether its members have inputs of their own, and not those of one layer before."""
        expert = expert_of(self.members[0].module)
        return expert is not None and expert[2] == EXPERT_PARTS[-1]

    def places(self) -> Iterator[tuple[Member, slice]]:
        """Every member with where its rows are in this layer."""
        first = 0
        for member in self.members:
            yield member, slice(first, first + member.count)
            first += member.count


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
