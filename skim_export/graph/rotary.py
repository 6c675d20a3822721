"""Rotary tables, as transformers computes them: whatever form a model's rotary embedding has, it is asked for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skim_export.checkpoint import rotary_embedding

if TYPE_CHECKING:
    import torch

__all__ = ["is_long_rope", "original_positions", "rotary_tables", "table_kind", "table_values"]

TOGETHER = 1 << 16  # positions, which bounds the memory beside the tables


def is_long_rope(config: Any) -> bool:
    """Whether there are two sets of frequencies, for texts within the original context and beyond."""
    return _parameters(config).get("rope_type") == "longrope"


def original_positions(config: Any) -> int:
    """The original context, which the second set of frequencies begins behind."""
    return int(_parameters(config)["original_max_position_embeddings"])


def _parameters(config: Any) -> dict[str, Any]:
    return getattr(config, "rope_parameters", None) or {}


def table_kind(config: Any, layer_type: str) -> str:
    """What tells the tables of a type of layers from others: nothing where all layers have the same."""
    return layer_type if isinstance(_parameters(config).get(layer_type), dict) else ""


def table_values(network: Any, positions: int) -> int:
    """Number of values in all tables of a model for so many positions."""
    config = network.config
    types = {kind for kind in getattr(config, "layer_types", None) or ["full_attention"] if kind.endswith("_attention")}
    kinds = {table_kind(config, layer_type) for layer_type in types - {"linear_attention"}}
    rows = positions + (original_positions(config) if is_long_rope(config) else 0)
    return sum(2 * rows * _rows(network, kind, [0])[0].shape[-1] for kind in kinds)


def _rows(network: Any, kind: str, positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines `[S, rotary dimensions / 2]` of the positions `[S]` of one text."""
    import torch

    ids = torch.tensor([positions])
    rotary = rotary_embedding(network)
    cos, sin = rotary(torch.zeros(1), ids, kind) if kind else rotary(torch.zeros(1), ids)
    frequencies = getattr(rotary, "inv_freq", None)
    once = frequencies is not None and cos.shape[-1] == len(frequencies)  # gpt-oss; others repeat all of them
    count = cos.shape[-1] if once else cos.shape[-1] // 2
    return cos[0, :, :count], sin[0, :, :count]


def rotary_tables(network: Any, layer_type: str, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, float32 `[rows, rotary dimensions / 2]`.

    There is a row for each position. With two sets of frequencies there are the original context's rows by the first
    set, and behind them all rows by the second.

    Args:
        network: of transformers, its buffers loaded.
        layer_type: of the layers that the tables are for, as the configuration names it.
        positions: number of them.
    """
    import torch

    kind = table_kind(network.config, layer_type)

    def rows(start: int, stop: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of some positions of a text whose last position is `last`."""
        cos, sin = _rows(network, kind, [*range(start, stop), last])
        return cos[:-1], sin[:-1]

    def table(count: int, last: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [rows(start, min(start + TOGETHER, count), last) for start in range(0, count, TOGETHER)]

    if is_long_rope(network.config):
        original = original_positions(network.config)
        parts = table(original, original - 1) + table(positions, max(original, positions - 1))
    else:
        parts = table(positions, positions - 1)
    cos, sin = zip(*parts, strict=True)
    return torch.cat(cos), torch.cat(sin)
