"""A quantized model as transformers sees it: its tensors are those that the packed linears mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from skim_export.checkpoint import Member, Model
from skim_export.checkpoint.skeleton import skeleton
from skim_export.packed.linear import PackedLinear

if TYPE_CHECKING:
    import torch

__all__ = ["DequantizedTensors", "dequantized_model"]


class DequantizedTensors(Mapping[str, "torch.Tensor"]):
    """The tensors of a checkpoint that are packed, float32, by their names there: computed when they are asked for.

    Args:
        model: whose they are.
        packed: the packed linear of a unit; None for one that is to keep the checkpoint's weights.
    """

    def __init__(self, model: Model, packed: Callable[[str], PackedLinear | None]) -> None:
        self._packed = packed
        self._dequantized = lru_cache(maxsize=1)(self._dequantize)  # members of a unit are asked for one by one
        architecture = model.architecture
        self._checkpoint = model.checkpoint
        self._places: dict[str, list[tuple[Member, str, slice]]] = {}
        for linear in (*architecture.linears, *architecture.vocabulary_linears):
            for member, rows in linear.places():
                self._places.setdefault(f"{member.module}.weight", []).append((member, linear.name, rows))
        if architecture.tied and architecture.embedding not in architecture.excluded:
            self._places[f"{architecture.head}.weight"] = self._places[f"{architecture.embedding}.weight"]

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch

        parts = []
        for member, unit, rows in sorted(self._places[name], key=lambda place: place[0].start):
            weights = self._dequantized(unit)
            parts.append(
                self._checkpoint.tensor(name, member.rows)
                if weights is None
                else torch.from_numpy(np.ascontiguousarray(weights[rows]))
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _dequantize(self, unit: str) -> npt.NDArray[np.float32] | None:
        packed = self._packed(unit)
        return None if packed is None else packed.dequantize()


def dequantized_model(model: Model, packed: Callable[[str], PackedLinear | None]) -> Any:
    """The transformers network with dequantized weights, float32; arguments as for `DequantizedTensors`."""
    checkpoint = model.checkpoint.replacing(DequantizedTensors(model, packed))
    network = skeleton(checkpoint)
    tensors = {name: checkpoint.tensor(name) for name in network.state_dict() if checkpoint.has(name)}
    network.load_state_dict(tensors, strict=False, assign=True)
    if network.config.tie_word_embeddings:
        network.tie_weights()
    missing = [name for name, parameter in network.named_parameters() if parameter.is_meta]
    if missing:
        raise RuntimeError(f"no weights for {', '.join(missing)}")
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network
