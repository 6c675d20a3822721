"""What this package has to know of a format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from skim_export.checkpoint.tensors import Tensor

from .stored_module import Settings, StoredModule

__all__ = ["Format"]


@dataclass(frozen=True)
class Format:
    """A format for quantized weights.

    Attributes:
        codes: tensors by which a quantized module is known; `weight` only if it is of no floating-point type that
            checkpoints in full precision have.
        parts: all tensors that a quantized module has in place of its weight.
        described: what to call it; a `UserError` if config.json tells of a variant that cannot be read.
        weight: the weight of a module; a `UserError` if one of its tensors is missing or wrong.
        ignored: tensors of any module that are not of the weights.
        separator: what stands between the name of a module and those of its tensors. If it is no dot, the module is a
            parameter of its own, not a module with a weight.
    """

    codes: tuple[str, ...]
    parts: tuple[str, ...]
    described: Callable[[Settings], str]
    weight: Callable[[StoredModule, Settings], Tensor]
    ignored: tuple[str, ...] = ()
    separator: str = "."
