"""A model that was not downloaded: the shapes of its tensors, from a few entries of its config.json."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import Checkpoint, StoredTensor
from .skeleton import skeleton

if TYPE_CHECKING:
    import torch

__all__ = ["ShapesOnly"]

PUBLISHED_TYPE, PUBLISHED_BYTES = "BF16", 2  # as nearly all models are published


class ShapesOnly(Checkpoint):
    """A checkpoint with headers and no files, to estimate with: its values are random.

    Args:
        name: of the model, for messages.
        config: the entries of config.json that shapes follow from.
    """

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        self.path = Path(name)
        self.raw_config = config
        self._replaced = ()
        parameters = skeleton(self).named_parameters()  # a head that is the embedding is not among them
        self._stored = {
            name: StoredTensor(self.path, name, PUBLISHED_TYPE, tuple(parameter.shape))
            for name, parameter in parameters
        }

    @cached_property
    def config(self) -> Any:
        """The transformers configuration: defaults for what the entries do not say."""
        from transformers import AutoConfig

        return AutoConfig.for_model(**self.raw_config)

    @property
    def file_bytes(self) -> int:
        """Bytes that the files with weights have, about."""
        return PUBLISHED_BYTES * self.parameter_count

    def tensor(self, name: str, rows: slice = slice(None)) -> torch.Tensor:
        """Random values of the tensor's shape, float32, or of some of its rows: they take as long as real ones."""
        import torch

        count, *others = self.shape(name)
        return torch.randn(len(range(*rows.indices(count))), *others)
