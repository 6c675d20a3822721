"""A transformers network of which only one decoder block is in memory at a time."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from skim_export.checkpoint import Model, forget_parameters, load_parameters, rotary_embedding, skeleton

from .arguments import Arguments, Recorder
from .shared_states import SharedStates

__all__ = ["Head", "StreamedModel"]

READ_TOGETHER = 4096  # rows of an embedding: each piece opens its file once
SCALED_TOKENS = 16  # whose rows tell the scale


class Head(nn.Module):
    """From normed states `[m, hidden]` to logits `[m, V]`: the head and what transformers does to its outputs.

    Args:
        network: the whole network; its decoder is not run.

    Attributes:
        linear: the head itself.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.linear: nn.Linear = network.get_output_embeddings()
        tail = copy.copy(network)
        tail._modules = {**network._modules, network.base_model_prefix: _Given()}
        self._tail = [tail]  # in a list, or else its parameters would count as ours twice

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """The logits, float32."""
        logits: torch.Tensor = self._tail[0](inputs_embeds=states[None]).logits[0]
        return logits


class _Given(nn.Module):
    """A decoder whose last states are known."""

    def forward(self, inputs_embeds: torch.Tensor, **_: Any) -> BaseModelOutputWithPast:
        return _States(last_hidden_state=inputs_embeds)


class _States(BaseModelOutputWithPast):  # type: ignore[misc,unused-ignore]
    """Nothing but the last states, whatever else a model's decoder returns."""

    def __getattr__(self, name: str) -> None:
        return None


class StreamedModel:
    """The network of a model; `load_block` brings a decoder block in, `unload_block` lets it go.

    What surrounds the blocks (embedding, masks, rotary embeddings, what is done to logits) stays the business of
    transformers: `enter` runs its own forward pass with the blocks replaced by recorders.

    Args:
        model: the model.
        device: where its weights are, as far as they are in memory; None for the CPU.
    """

    def __init__(self, model: Model, device: torch.device | None = None) -> None:
        self._checkpoint, self._architecture = model.checkpoint, model.architecture
        self._device = device
        self._network = skeleton(self._checkpoint)
        self._decoder = self._network.base_model
        rotary_embedding(self._network).to(device=device)
        self._load(self._architecture.norm)
        self._shared = SharedStates(self._checkpoint.config)
        self._shared.narrow(self.module(self._architecture.norm))
        self._front = self._modules_in_front()
        self._head_tensors = self._architecture.head_linear.members[0].module

    def enter(self, tokens: torch.Tensor) -> tuple[torch.Tensor, list[Arguments]]:
        """Run everything in front of the blocks.

        Args:
            tokens: int64 `[S, T]`.

        Returns:
            The first block's input, float32 `[S, T, hidden]`, on the CPU, and the further arguments of every block.
        """
        blocks = [self.module(name) for name in self._architecture.block_modules]
        _, *names = inspect.signature(blocks[0].forward).parameters
        recorded: list[tuple[torch.Tensor, dict[str, Any]]] = []

        def record(hidden: torch.Tensor, *further: Any, **arguments: Any) -> torch.Tensor:
            recorded.append((hidden, dict(zip(names, further, strict=False)) | arguments))
            return hidden

        hidden, recorders = [], [Recorder() for _ in blocks]
        for block in blocks:
            block.forward = record
        with torch.no_grad(), ExitStack() as loaded:
            used = sorted(set(tokens.flatten().tolist()))
            for name in self._front:
                loaded.enter_context(self._loaded(name, used))
            for sequence in tokens:
                recorded.clear()
                self._decoder(input_ids=sequence[None].to(device=self._device), use_cache=False)
                hidden.append(recorded[0][0].cpu())
                for recorder, (_, arguments) in zip(recorders, recorded, strict=True):
                    recorder.add(arguments)
        for block in blocks:
            del block.forward
        return torch.cat(hidden), [recorder.arguments() for recorder in recorders]

    def _modules_in_front(self) -> list[str]:
        """Modules with weights that are neither in blocks nor behind them."""
        known = (self._architecture.norm, self._architecture.head)
        blocks = tuple(f"{block}." for block in self._architecture.block_modules)
        return [
            path
            for path, module in self._network.named_modules()
            if any(True for _ in module.parameters(recurse=False)) and path not in known and not path.startswith(blocks)
        ]

    @contextmanager
    def _loaded(self, name: str, tokens: list[int]) -> Iterator[None]:
        """A module in front of the blocks with its weights, of an embedding those of some tokens, ascending."""
        module = self.module(name)
        if not isinstance(module, nn.Embedding):
            self._load(name)
            yield
            forget_parameters(module)
            return
        whole, padding = module.weight, module.padding_idx
        rows = self._rows(f"{name}.weight", tokens)
        module.weight, module.padding_idx = nn.Parameter(rows.to(device=self._device), requires_grad=False), None
        numbers = torch.tensor(tokens, device=self._device)
        handle = module.register_forward_pre_hook(lambda _, inputs: (torch.searchsorted(numbers, inputs[0]),))
        yield
        handle.remove()
        module.weight, module.padding_idx = whole, padding

    def _rows(self, name: str, numbers: list[int]) -> torch.Tensor:
        """Some rows of a tensor, of which `READ_TOGETHER` are in memory at a time beside them; numbers ascend."""
        parts = []
        for piece, members in groupby(numbers, lambda number: number // READ_TOGETHER):
            start = piece * READ_TOGETHER
            wanted = torch.tensor([number - start for number in members])
            parts.append(self._checkpoint.tensor(name, slice(start, start + READ_TOGETHER))[wanted])
        return torch.cat(parts)

    def embedding_scale(self) -> float:
        """How much larger the first block's input is than the rows of the embedding: architectures multiply them."""
        tokens = torch.arange(min(SCALED_TOKENS, self._architecture.vocabulary_size))
        hidden, _ = self.enter(tokens[None])
        rows = self._checkpoint.tensor(f"{self._architecture.embedding}.weight", slice(0, len(tokens)))
        return float(hidden.norm() / rows.norm())

    def load_block(self, index: int) -> nn.Module:
        """Read the weights of one decoder block."""
        self._load(self._architecture.block_modules[index])
        return self.block(index)

    def block(self, index: int) -> nn.Module:
        """A decoder block from states to states, its weights as they are: what is shared follows the hidden states."""
        block = self.module(self._architecture.block_modules[index])
        self._shared.connect(block, index)
        return block

    def width(self, index: int) -> int:
        """Channels of the input of a decoder block."""
        return self._shared.width(index)

    def unload_block(self, index: int) -> None:
        """Forget the weights of one decoder block."""
        self._shared.disconnect(index)
        forget_parameters(self.module(self._architecture.block_modules[index]))

    def load_head(self) -> tuple[nn.Module, Head]:
        """The norm, and the language model head."""
        head = self.module(self._architecture.head)
        load_parameters(self._checkpoint, head, self._head_tensors, self._device)
        return self.module(self._architecture.norm), Head(self._network)

    def unload_head(self) -> None:
        """Forget the weights of the head."""
        forget_parameters(self.module(self._architecture.head))

    def load_all(self) -> Any:
        """Read everything: the network, ready to be called."""
        for name in (*self._front, *self._architecture.block_modules):
            self._load(name)
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
