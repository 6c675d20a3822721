"""A model as the rest of the exporter sees it: what its files hold, and which part of it is what."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from .architecture import Architecture, architecture_of
from .checkpoint import Checkpoint
from .declarations import declaration_of
from .recipes import Recipe, is_here, load_recipes, resolve
from .shapes import ShapesOnly

if TYPE_CHECKING:
    import torch

__all__ = ["Model"]


@dataclass(frozen=True)
class Model:
    """A model on the disk, its weights floats for whoever reads them; none is in memory.

    The transformers module that is made of it is called a network, here and elsewhere.

    Attributes:
        checkpoint: its configuration, tensors and tokenizer.
        architecture: its parts, by the names that the checkpoint has for them.
    """

    checkpoint: Checkpoint
    architecture: Architecture

    @classmethod
    def open(
        cls,
        name: str | Path,
        *,
        adapter: str | Path | None = None,
        progress: Progress | None = None,
        download: bool = True,
    ) -> Model:
        """Find a model, downloading it if need be, and check its files; warn if it is quantized already.

        Args:
            name: alias of a recipe, Hugging Face id, directory, or GGUF file.
            adapter: directory of a LoRA adapter to merge.
            progress: told of a download.
            download: whether the model of a recipe is downloaded; otherwise, and without an adapter, its shapes may be
                all that there is.

        Raises:
            UserError: there is none of that name, its architecture is not supported, a file is missing or damaged, or
                the adapter cannot be merged.
        """
        recipe = load_recipes().get(str(name))
        if recipe is not None:
            _check_supported(recipe)
            if not download and adapter is None and not is_here(recipe):
                return cls.of_shapes(recipe)
        checkpoint = Checkpoint(resolve(str(name), progress=progress), None if adapter is None else Path(adapter))
        model = cls(checkpoint, architecture_of(checkpoint))
        model._check_tied()
        if checkpoint.quantization is not None:
            warnings.warn(
                f"model {name} is quantized already ({checkpoint.quantization}): its weights are made float again; a "
                "full-precision checkpoint, if there is one, gives a better result",
                stacklevel=2,
            )
        return model

    def _check_tied(self) -> None:
        """Training changed the embedding alone, and merging would change the head with it."""
        embedding, adapter = self.architecture.embedding, self.checkpoint.adapter
        if adapter is not None and self.architecture.tied and f"{embedding}.weight" in self.checkpoint.adapted:
            raise UserError(
                f"--adapter {adapter.path}: changes {embedding}, which is the output head of this "
                "model, too: such adapters cannot be merged"
            )

    @classmethod
    def of_shapes(cls, recipe: Recipe) -> Model:
        """The model of a recipe, of which nothing is known but its shapes: for estimates.

        Raises:
            UserError: its architecture is not supported.
        """
        checkpoint = ShapesOnly(recipe.alias, recipe.config)
        return cls(checkpoint, architecture_of(checkpoint))

    @property
    def only_shapes(self) -> bool:
        """Whether its values are random, since it was not downloaded."""
        return isinstance(self.checkpoint, ShapesOnly)

    def check_tokenizer(self) -> None:
        """Load the tokenizer now, so that a missing one is found before hours of work; warn if it doesn't fit.

        Raises:
            UserError: there is none, or it cannot be loaded.
        """
        vocabulary, tokens = self.architecture.vocabulary_size, self.checkpoint.tokenizer.get_vocab()
        unknown = sorted((number, token) for token, number in tokens.items() if number >= vocabulary)
        if unknown:
            number, token = unknown[0]
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            warnings.warn(
                f"the tokenizer has the token {token!r} ({number}){more}, but the model's embedding ends at "
                f"{vocabulary - 1}: the exported model refuses texts with it",
                stacklevel=2,
            )

    def check_tokens(self, tokens: Iterable[int], text: str) -> None:
        """Find out whether the model has all tokens of a text.

        Args:
            tokens: of the text.
            text: what it is, for the message.

        Raises:
            UserError: it has not.
        """
        vocabulary = self.architecture.vocabulary_size
        unknown = next((int(token) for token in tokens if token >= vocabulary), None)
        if unknown is not None:
            name = self.checkpoint.tokenizer.convert_ids_to_tokens(unknown)
            raise UserError(
                f"{text}: holds the token {name!r} ({unknown}), but the model's embedding ends at {vocabulary - 1}"
            )

    def excluding(self, names: Iterable[str]) -> Model:
        """The same model, of which the linear layers of these names are not packed."""
        return replace(self, architecture=replace(self.architecture, excluded=frozenset(names)))

    def replacing(self, tensors: Mapping[str, torch.Tensor]) -> Model:
        """The same model with other values, float32, in some of its tensors."""
        return replace(self, checkpoint=self.checkpoint.replacing(tensors))


def _check_supported(recipe: Recipe) -> None:
    """Find out before a download of many gigabytes whether the architecture is supported.

    Raises:
        UserError: it is not.
    """
    try:
        declaration_of(recipe.architecture)
    except UserError as error:
        raise UserError(f"model {recipe.alias} cannot be exported yet: {error}") from error
