"""What a block is given beside its input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Arguments", "Recorder"]


@dataclass(frozen=True)
class Arguments:
    """Further arguments of a block for S sequences.

    Attributes:
        common: those that are the same for all of them, on the device of the block.
        own: those of each sequence, `[S, ...]`, on the CPU.
    """

    common: dict[str, Any] = field(default_factory=dict)
    own: dict[str, torch.Tensor] = field(default_factory=dict)

    def of(self, sequence: int, device: torch.device) -> dict[str, Any]:
        """The arguments of one sequence, on a device."""
        return self.common | {name: values[sequence : sequence + 1].to(device) for name, values in self.own.items()}

    def part(self, sequences: slice) -> Arguments:
        """The arguments of some sequences."""
        return Arguments(self.common, {name: values[sequences] for name, values in self.own.items()})


class Recorder:
    """Takes the arguments of one sequence after the other, and finds out which of them differ."""

    def __init__(self) -> None:
        self._common: dict[str, Any] = {}
        self._own: dict[str, list[torch.Tensor]] = {}
        self._sequences = 0

    def add(self, arguments: dict[str, Any]) -> None:
        """The arguments of the next sequence, tensors `[1, ...]`; what is no tensor is the same for all of them."""
        import torch

        if self._sequences == 0:
            self._common = dict(arguments)
        for name, value in arguments.items():
            if name in self._own:
                self._own[name].append(value.cpu())
            elif isinstance(value, torch.Tensor) and not torch.equal(value, self._common[name]):
                self._own[name] = [self._common.pop(name).cpu()] * self._sequences + [value.cpu()]
        self._sequences += 1

    def arguments(self) -> Arguments:
        """Those of all sequences so far."""
        import torch

        return Arguments(self._common, {name: torch.cat(values) for name, values in self._own.items()})
