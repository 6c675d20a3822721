"""Experts in MXFP4 (OCP Microscaling), as gpt-oss stores them: floats of 4 bits, 32 of which share a power of two.

`<matrix>_blocks` uint8 `[E, N, K / 32, 16]`, two codes a byte, the lower one first; `<matrix>_scales` uint8
`[E, N, K / 32]`, exponents with 127 for 1. transformers has the matrix as `[E, K, N]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skim_export.checkpoint.tensors import StoredTensor

from .format import Format
from .stored_module import Settings, StoredModule

if TYPE_CHECKING:
    import torch

__all__ = ["MXFP4"]

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of a code; its top bit is the sign
BLOCK_BYTES = 16
ONE = 127  # the exponent of 1
BYTES = ("U8",)


@dataclass(frozen=True)
class _Mxfp4Tensor:
    """A matrix of each expert that is made float when it is read.

    Attributes:
        blocks: uint8 `[E, N, K / 32, 16]`.
        scales: uint8 `[E, N, K / 32]`.
    """

    blocks: StoredTensor
    scales: StoredTensor

    @property
    def file(self) -> Path:
        """See `Tensor`."""
        return self.blocks.file

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Tensor`: `[E, K, N]`."""
        experts, rows, count, _ = self.blocks.shape
        return experts, count * 2 * BLOCK_BYTES, rows

    def read(self, rows: slice) -> torch.Tensor:
        """See `Tensor`: the matrices of some experts."""
        import torch

        codes, exponents = self.blocks.read_stored(rows), self.scales.read_stored(rows)
        values = torch.tensor([*VALUES, *(-value for value in VALUES)])
        levels = torch.stack([values[(codes & 15).int()], values[(codes >> 4).int()]], dim=-1).flatten(-2)
        weight = torch.ldexp(levels, (exponents.int() - ONE)[..., None]).flatten(-2)
        return weight.transpose(1, 2)


def _weight(module: StoredModule, settings: Settings) -> _Mxfp4Tensor:
    """The matrices of all experts of a layer."""
    blocks = module.stored[f"{module.name}_blocks"]
    blocks.check_type(BYTES)
    experts, rows, count = (*blocks.shape, 0, 0, 0)[:3]
    blocks.check_shape((experts, rows, count, BLOCK_BYTES))
    scales = module.part("scales", BYTES, (experts, rows, count))
    return _Mxfp4Tensor(blocks, scales)


MXFP4 = Format(
    codes=("blocks",),
    parts=("blocks", "scales"),
    described=lambda settings: "mxfp4",
    weight=_weight,
    separator="_",
)
