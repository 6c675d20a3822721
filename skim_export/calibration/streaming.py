"""A transformers network of which only one decoder block is in memory at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from skim_export.checkpoint import Model, load_parameters, skeleton

__all__ = ["StreamedModel"]


class StreamedModel:
    """The network of a model; `load_block` brings a decoder block in, `unload_block` lets it go.

    What surrounds the blocks (embedding, masks, rotary embeddings) stays the business of transformers: `enter` runs
    its own forward pass with the blocks replaced by recorders.

    Args:
        model: the model.
        device: where its weights are, as far as they are in memory; None for the CPU.
    """

    def __init__(self, model: Model, device: torch.device | None = None) -> None:
        self._checkpoint, self._architecture = model.checkpoint, model.architecture
        self._device = device
        self._network = skeleton(self._checkpoint)
        self._decoder = self._network.base_model
        self._decoder.rotary_emb.to(device=device)
        self._load(self._architecture.norm)
        self._head = self._architecture.head_linear.members[0]

    def enter(self, tokens: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """Run everything in front of the blocks.

        Args:
            tokens: int64 `[S, T]`.

        Returns:
            The first block's input, float32 `[S, T, hidden]`, on the CPU, and the further arguments of every block,
            which are the same for all sequences, on the device.
        """
        embedding = self._load(self._architecture.embedding)
        blocks = [self.module(name) for name in self._architecture.block_modules]
        recorded: list[tuple[torch.Tensor, dict[str, Any]]] = []

        def record(hidden: torch.Tensor, **arguments: Any) -> torch.Tensor:
            recorded.append((hidden, arguments))
            return hidden

        hidden = []
        for block in blocks:
            block.forward = record
        with torch.no_grad():
            for sequence in tokens:
                recorded.clear()
                self._decoder(input_ids=sequence[None].to(device=self._device), use_cache=False)
                hidden.append(recorded[0][0].cpu())
        for block in blocks:
            del block.forward
        embedding.to("meta")
        return torch.cat(hidden), [arguments for _, arguments in recorded]

    def load_block(self, index: int) -> nn.Module:
        """Read the weights of one decoder block."""
        return self._load(self._architecture.block_modules[index])

    def unload_block(self, index: int) -> None:
        """Forget the weights of one decoder block."""
        self.module(self._architecture.block_modules[index]).to("meta")

    def load_head(self) -> tuple[nn.Module, nn.Module]:
        """The norm and the language model head."""
        head = self.module(self._architecture.head)
        load_parameters(self._checkpoint, head, self._head, self._device)
        return self.module(self._architecture.norm), head

    def unload_head(self) -> None:
        """Forget the weights of the head."""
        self.module(self._architecture.head).to("meta")

    def load_all(self) -> Any:
        """Read everything: the network, ready to be called."""
        self._load(self._architecture.embedding)
        for index in range(len(self._architecture.blocks)):
            self.load_block(index)
        self.load_head()
        return self._network

    def module(self, name: str) -> nn.Module:
        """A module by its path, as it is now."""
        module: nn.Module = self._network.get_submodule(name)
        return module

    def _load(self, name: str) -> nn.Module:
        """Read the weights of a module."""
        module = self.module(name)
        load_parameters(self._checkpoint, module, name, self._device)
        return module
