"""A decoder as a list of operators for the runtime of a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from skim_runtime.operators import PackedWeights

__all__ = ["Attention", "Kind", "Operator", "Part", "Program"]


class Kind(Enum):
    """What an operator does; c/skim_model.h says it in detail."""

    EMBED = "SKIM_EMBED"
    NORM = "SKIM_NORM"
    ADD_NORM = "SKIM_ADD_NORM"
    PREPARE = "SKIM_PREPARE"
    PRODUCT = "SKIM_PRODUCT"
    ATTENTION = "SKIM_ATTENTION"
    SWIGLU = "SKIM_SWIGLU"
    ADD = "SKIM_ADD"
    MUL = "SKIM_MUL"
    SCALE = "SKIM_SCALE"
    RELU = "SKIM_RELU"
    GELU = "SKIM_GELU"
    GELU_TANH = "SKIM_GELU_TANH"
    TANH = "SKIM_TANH"


@dataclass(frozen=True)
class Attention:
    """Attention of grouped queries with rotary embedding and key/value cache.

    Attributes:
        heads: of queries.
        kv_heads: of keys and values.
        head_size: channels of a head.
        window: positions that are seen, the newest among them; 0 for all.
        scale: of the scores.
        softcap: bound of the scores; 0 for none.
        rotary_size: leading channels of a head that are rotated; 0 for none.
        interleaved: whether channels 2i and 2i + 1 are rotated together, or else i and rotary_size / 2 + i.
        cos_cache: name of a tensor `[positions, rotary_size / 2]`; empty without rotation.
        sin_cache: the same.
    """

    heads: int
    kv_heads: int
    head_size: int
    window: int
    scale: float
    softcap: float
    rotary_size: int = 0
    interleaved: bool = False
    cos_cache: str = ""
    sin_cache: str = ""


@dataclass(frozen=True)
class Operator:
    """One operator; inputs and outputs are names of values.

    Attributes:
        kind: what it does.
        inputs: values that it reads; none for an embedding, which reads the token ids.
        outputs: values that it writes.
        unit: of its packed weights.
        attention: of `Kind.ATTENTION`.
        weight: name of a norm's weight `[channels]`.
        channels: columns that a norm is over; each run of so many has its own.
        epsilon: of a norm.
        factor: of `Kind.SCALE`.
    """

    kind: Kind
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    unit: str = ""
    attention: Attention | None = None
    weight: str = ""
    channels: int = 0
    epsilon: float = 0.0
    factor: float = 0.0


@dataclass(frozen=True)
class Part:
    """Some columns of a value, which are a value, too.

    Attributes:
        whole: the value, which an operator writes.
        start: the first column.
    """

    whole: str
    start: int


@dataclass(frozen=True)
class Program:
    """A decoder; its weights stay in the file until they are asked for.

    Attributes:
        operators: in the order of execution; every value is written once, or is a part of such a one.
        widths: elements that each value has for a token; a prepared one has those of what it is prepared from.
        parts: values that are parts of others.
        linears: packed weights by unit.
        tensors: what loads the other weights, float32, by name.
        integer: units that are multiplied in integer arithmetic.
        logits: the value with the logits.
    """

    operators: list[Operator] = field(default_factory=list)
    widths: dict[str, int] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    linears: dict[str, PackedWeights[ir.TensorProtocol]] = field(default_factory=dict)
    tensors: dict[str, Callable[[], npt.NDArray[np.float32]]] = field(default_factory=dict)
    integer: set[str] = field(default_factory=set)
    logits: str = "logits"

    def add_part(self, name: str, value: str, start: int, width: int) -> None:
        """Name `width` columns of a value, from `start` on."""
        part = self.parts.get(value, Part(value, 0))
        self.parts[name] = Part(part.whole, part.start + start)
        self.widths[name] = width

    def whole(self, value: str) -> str:
        """The value that a value is a part of, or else itself."""
        return self.parts[value].whole if value in self.parts else value

    @property
    def vocabulary(self) -> int:
        """Tokens of the model."""
        return self.widths[self.logits]

    @property
    def gathered(self) -> set[str]:
        """Units whose rows are looked up one by one."""
        return {op.unit for op in self.operators if op.kind == Kind.EMBED}

    @property
    def positions(self) -> int | None:
        """Positions that rotary embeddings are there for; None if there are none."""
        caches = {op.attention.cos_cache for op in self.operators if op.attention and op.attention.cos_cache}
        return min((len(self.tensors[name]()) for name in caches), default=None)
