"""A model that was not downloaded: the shapes of its tensors, from a few entries of its config.json."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import Checkpoint
from .skeleton import skeleton, state_once

if TYPE_CHECKING:
    import torch

__all__ = ["ShapesOnly"]

PUBLISHED_BYTES = 2  # of a value: nearly all models are published in bfloat16


@dataclass(frozen=True)
class _RandomTensor:
    """A tensor of which only the shape is known; see `Tensor`."""

    file: Path
    shape: tuple[int, ...]

    def read(self, rows: slice) -> torch.Tensor:
        import torch

        count, *others = self.shape
        return torch.randn(len(range(*rows.indices(count))), *others)


class ShapesOnly(Checkpoint):
    """A checkpoint without files, to estimate with: its values are random, and to work on them takes as long as ever.

    Args:
        name: of the model, for messages.
        config: the entries of config.json that shapes follow from.
    """

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        self.source = self.path = Path(name)
        self.files, self._is_part = [], False
        self.raw_config = config
        self.quantization, self.adapter, self.adapted = None, None, frozenset()
        self._replaced = ()
        state = state_once(skeleton(self))
        self._tensors = {name: _RandomTensor(self.path, tuple(tensor.shape)) for name, tensor in state.items()}

    @cached_property
    def config(self) -> Any:
        """The transformers configuration: defaults for what the entries do not say."""
        from transformers import AutoConfig

        return AutoConfig.for_model(**self.raw_config)

    @property
    def file_bytes(self) -> int:
        """Bytes that the files with weights have, about."""
        return PUBLISHED_BYTES * self.parameter_count
