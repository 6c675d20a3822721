"""Keys and values that later blocks use as well: they travel behind the hidden states, from block to block.

So a block stays a function from states to states, and the gradient in the states has reached the block that made the
keys and values by the time that it is run backwards, whichever blocks used them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["SharedStates"]


@dataclass(frozen=True)
class _Shared:
    """Keys and values of one block: what kind of layer uses them, heads, and channels of a head."""

    block: int
    kind: str
    heads: int
    size: int


class SharedStates:
    """What follows the hidden states `[S, T, hidden]` in front of and behind every block.

    Args:
        config: the configuration, which says what blocks keep and what blocks use, as transformers does.
    """

    def __init__(self, config: Any) -> None:
        self._hidden = config.hidden_size
        self._shared = [
            _Shared(block, config.layer_types[block], layer.num_key_value_heads, layer.head_dim)
            for block, mode in enumerate(getattr(config, "kv_sharing_modes", []))
            if mode == "store"
            for layer in [config.per_layer_config[block]]
        ]
        self._handles: dict[int, list[Any]] = {}

    def width(self, block: int) -> int:
        """Channels of a block's input."""
        return sum(self._widths(block))

    def _widths(self, block: int) -> list[int]:
        sizes = [shared.heads * shared.size for shared in self._shared if shared.block < block for _ in range(2)]
        return [self._hidden, *sizes]

    def connect(self, block: nn.Module, index: int) -> None:
        """Let a block take its input apart, and put its output together."""
        if not self._shared or index in self._handles:
            return
        before = [shared for shared in self._shared if shared.block < index]
        behind = [shared for shared in self._shared if shared.block <= index]

        def split(_: nn.Module, inputs: tuple[Any, ...], arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            hidden, *parts = inputs[0].split(self._widths(index), dim=-1)
            pairs = zip(before, parts[::2], parts[1::2], strict=True)
            states = {one.kind: (_heads(keys, one), _heads(values, one)) for one, keys, values in pairs}
            return (hidden,), arguments | {"shared_kv_states": states}

        def join(_: nn.Module, __: Any, arguments: dict[str, Any], hidden: torch.Tensor) -> torch.Tensor:
            states = arguments["shared_kv_states"]
            parts = [part.transpose(1, 2).flatten(2) for one in behind for part in states[one.kind]]
            return torch.cat([hidden, *parts], dim=-1)

        self._handles[index] = [
            block.register_forward_pre_hook(split, with_kwargs=True),
            block.register_forward_hook(join, with_kwargs=True),
        ]

    def disconnect(self, index: int) -> None:
        """Let a block have its ordinary input and output again."""
        for handle in self._handles.pop(index, []):
            handle.remove()

    def narrow(self, norm: nn.Module) -> None:
        """Let the last norm take the hidden states out of its input."""
        norm.register_forward_pre_hook(lambda _, inputs: (inputs[0][..., : self._hidden],))


def _heads(rows: torch.Tensor, shared: _Shared) -> torch.Tensor:
    """From `[1, T, heads * size]` to `[1, heads, T, size]`."""
    return rows.reshape(*rows.shape[:-1], shared.heads, shared.size).transpose(1, 2)
