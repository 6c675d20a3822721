"""A model as the rest of the exporter sees it: what its files hold, and which part of it is what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from skim_runtime.progress import Progress

from .architecture import Architecture, architecture_of
from .checkpoint import Checkpoint
from .recipes import resolve

if TYPE_CHECKING:
    import torch

__all__ = ["Model"]


@dataclass(frozen=True)
class Model:
    """A full-precision model on the disk; none of its weights is in memory.

    The transformers module that is made of it is called a network, here and elsewhere.

    Attributes:
        checkpoint: its configuration, tensors and tokenizer.
        architecture: its parts, by the names that the checkpoint has for them.
    """

    checkpoint: Checkpoint
    architecture: Architecture

    @classmethod
    def open(cls, name: str | Path, *, progress: Progress | None = None) -> Model:
        """Find a model, downloading it if need be, and check its files.

        Args:
            name: alias of a recipe, Hugging Face id, or directory.
            progress: told of a download.

        Raises:
            UserError: there is none of that name, its architecture is not supported, or a file is missing or damaged.
        """
        checkpoint = Checkpoint(resolve(str(name), progress=progress))
        return cls(checkpoint, architecture_of(checkpoint))

    def replacing(self, tensors: dict[str, torch.Tensor]) -> Model:
        """The same model with other values, float32, in some of its tensors."""
        return replace(self, checkpoint=self.checkpoint.replacing(tensors))
