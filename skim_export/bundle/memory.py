"""When the operators of a program wait for each other, and where their values lie in memory.

Threads run the operators side by side and meet at barriers. Operators that are cheap and compute a token's row from
rows of the same token are *by token*: threads share the tokens, but compute a single one each for itself, in memory of
its own, which takes less time than a barrier. All others are divided among the threads by rows, heads or columns; a
thread has the same columns in all that are *by column*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from skim_export.bundle.abi import prepared_bytes
from skim_export.bundle.layout import TENSOR_ALIGNMENT
from skim_export.bundle.program import Kind, Operator, Program

__all__ = ["Barrier", "Buffer", "Plan", "make_plan"]

BY_TOKEN = (Kind.EMBED, Kind.NORM, Kind.ADD_NORM, Kind.PREPARE)
BY_COLUMN = (Kind.SWIGLU, Kind.MUL, Kind.RELU, Kind.GELU, Kind.GELU_TANH, Kind.TANH)
BY_WIDTH = (Kind.ADD, Kind.SCALE)  # by token up to so many columns, else by column:
NARROW = 8192


class Barrier(Enum):
    """When an operator waits until all threads have ended those before it."""

    NEVER = "SKIM_NEVER"
    IF_MANY_TOKENS = "SKIM_IF_MANY_TOKENS"
    ALWAYS = "SKIM_ALWAYS"


@dataclass(frozen=True)
class Buffer:
    """Where a value lies: a row for each token of a step, or one for its last token.

    Attributes:
        width: elements of a row.
        row_bytes: from one row to the next.
        last_only: whether there is only the last token's row.
        shared_offset: into the memory that all threads share.
        own_offset: into the memory of each thread, where a single row lies; None if it is shared, too.
    """

    width: int
    row_bytes: int
    last_only: bool
    shared_offset: int
    own_offset: int | None


@dataclass(frozen=True)
class Plan:
    """How to run a program.

    Attributes:
        chunk: tokens of a prompt that are computed at once.
        barriers: of each operator.
        last_only: whether each operator is computed for the last token of a step only.
        buffers: of all values.
        shared_bytes: of the memory that all threads share.
        own_bytes: of the memory of each thread.
    """

    chunk: int
    barriers: list[Barrier]
    last_only: list[bool]
    buffers: dict[str, Buffer]
    shared_bytes: int
    own_bytes: int


def make_plan(program: Program, chunk: int) -> Plan:
    """Plan a program for prompts that are read in chunks of up to `chunk` tokens."""
    operators = program.operators
    last_only = _last_only(program)
    barriers = _barriers(program, last_only)
    producers = {name: i for i, op in enumerate(operators) for name in op.outputs}
    last_uses = producers | {program.whole(name): i for i, op in enumerate(operators) for name in op.inputs}
    last_uses[program.logits] = len(operators)

    # With one token, a thread may run ahead of the others up to the next barrier: what lies in shared memory is in use
    # from the first to the last operator between the same two barriers.
    phases = [0]
    for barrier in barriers:
        phases.append(phases[-1] + (barrier == Barrier.ALWAYS))
    phases = [*phases[1:], phases[-1] + 1]

    row_bytes, shared, own = {}, [], []
    for name, i in producers.items():
        width = program.widths[name]
        size = prepared_bytes(width) if operators[i].kind == Kind.PREPARE else 4 * width
        row_bytes[name] = _aligned(size)
        rows = 1 if last_only[i] else chunk
        shared.append(_Life(name, rows * row_bytes[name], phases[i], phases[last_uses[name]]))
        if is_by_token(program, operators[i]):
            own.append(_Life(name, row_bytes[name], i, last_uses[name]))
    shared_offsets, shared_bytes = _place(shared)
    own_offsets, own_bytes = _place(own)
    buffers = {
        name: Buffer(program.widths[name], row_bytes[name], last_only[i], shared_offsets[name], own_offsets.get(name))
        for name, i in producers.items()
    }
    for name, part in program.parts.items():
        buffers[name] = _part_of(buffers[part.whole], 4 * part.start, program.widths[name])
    return Plan(chunk, barriers, last_only, buffers, shared_bytes, own_bytes)


def is_by_token(program: Program, op: Operator) -> bool:
    """Whether an operator computes whole rows, each from those of the same token."""
    return op.kind in BY_TOKEN or (op.kind in BY_WIDTH and program.widths[op.outputs[0]] <= NARROW)


def is_by_column(program: Program, op: Operator) -> bool:
    """Whether a thread computes some columns, each from the same column of inputs of the same width."""
    return op.kind in BY_COLUMN or (op.kind in BY_WIDTH and not is_by_token(program, op))


def _part_of(whole: Buffer, start: int, width: int) -> Buffer:
    """Where a part of a value lies, from byte `start` of each row on."""
    own_offset = None if whole.own_offset is None else whole.own_offset + start
    return replace(whole, width=width, shared_offset=whole.shared_offset + start, own_offset=own_offset)


def _last_only(program: Program) -> list[bool]:
    """Which operators need not be computed but for the last token, whose logits are wanted."""
    wanted_for_all: set[str] = set()
    result = []
    for op in reversed(program.operators):
        last = wanted_for_all.isdisjoint(op.outputs)
        if not last or op.kind == Kind.ATTENTION:  # keys and values of all tokens go to the cache
            wanted_for_all.update(map(program.whole, op.inputs))
        result.append(last)
    return result[::-1]


def _barriers(program: Program, last_only: list[bool]) -> list[Barrier]:
    """A barrier in front of each operator that reads what another thread may have written since the last barrier."""
    one: set[str] = set()  # values that threads wrote parts of since the last barrier, when a step has one token
    many: dict[str, bool] = {}  # the same for many tokens, and whether a thread reads only what itself wrote by token
    columns: set[str] = set()  # values of which a thread wrote the columns that it also reads by column
    result = []
    for op, last in zip(program.operators, last_only, strict=True):
        by_token, by_column = is_by_token(program, op), is_by_column(program, op)
        inputs = {program.whole(name) for name in op.inputs if not (by_column and name in columns)}
        barrier = Barrier.NEVER
        if not one.isdisjoint(inputs):
            barrier = Barrier.ALWAYS
            one = set()
            many = {}
        elif any(not (many[name] and by_token and not last) for name in inputs if name in many):
            barrier = Barrier.IF_MANY_TOKENS
            many = {}
        if by_column:
            columns.update(op.outputs)
        if not by_token:
            one.update(op.outputs)
        many.update(dict.fromkeys(op.outputs, by_token and not last))
        result.append(barrier)
    return result


class _Life(NamedTuple):
    """A value takes `size` bytes from time `first` to time `last`."""

    name: str
    size: int
    first: int
    last: int


def _place(lives: list[_Life]) -> tuple[Mapping[str, int], int]:
    """Offsets at which values that live at the same time do not overlap, each the lowest, and the bytes of all."""
    offsets: dict[str, int] = {}
    for i, life in enumerate(lives):
        taken = sorted(
            (offsets[other.name], offsets[other.name] + other.size)
            for other in lives[:i]
            if other.first <= life.last and life.first <= other.last
        )
        offset = 0
        for begin, end in taken:
            if begin - offset >= life.size:
                break
            offset = max(offset, end)
        offsets[life.name] = offset
    return offsets, max((offsets[life.name] + life.size for life in lives), default=0)


def _aligned(size: int) -> int:
    return -(-size // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
