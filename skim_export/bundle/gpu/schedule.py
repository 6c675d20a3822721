"""How the kernels are laid out for a GPU: a few numbers, stated in a target's file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from skim_runtime.errors import UserError

__all__ = ["Decode", "Prefill", "Schedule"]


@dataclass(frozen=True)
class Decode:
    """Few tokens: rows are multiplied while they are decoded.

    A workgroup has `groups` groups of `threads` threads. The threads of a group share their rows' blocks of 32 columns
    in turn, and add their sums up at the end.

    Attributes:
        tokens: multiplied at once.
        threads: of a group, a power of 2.
        groups: of a workgroup.
        rows: of a group; they share what is loaded of the activations.
    """

    tokens: int
    threads: int
    groups: int
    rows: int


@dataclass(frozen=True)
class Prefill:
    """Many tokens: rows and tokens are multiplied tile by tile; weights are decoded into shared memory.

    Attributes:
        rows: of a tile, a multiple of `row_threads`.
        tokens: of a tile, a multiple of `token_threads`.
        blocks: of 32 columns that are in shared memory at once.
        row_threads: threads over the rows of a tile.
        token_threads: threads over the tokens of a tile.
    """

    rows: int
    tokens: int
    blocks: int
    row_threads: int
    token_threads: int


@dataclass(frozen=True)
class Schedule:
    """All that a target says of its kernels.

    Attributes:
        decode: kernels for few tokens; the one for the least number that takes all tokens is used.
        prefill: the kernel for more tokens than those take.
        threads: of a workgroup that prepares activations or gathers rows, a power of 2.
    """

    decode: tuple[Decode, ...]
    prefill: Prefill
    threads: int

    @classmethod
    def of(cls, table: dict[str, Any], where: str) -> Schedule:
        """From a table of a target's file.

        Args:
            table: with the names of the attributes.
            where: file and table, for messages.

        Raises:
            UserError: a number is missing, unknown or not positive, or does not fit the others.
        """
        _check_keys(cls, table, where)
        decode = tuple(_numbers(Decode, entry, f"{where}.decode[{i}]") for i, entry in enumerate(table["decode"]))
        prefill = _numbers(Prefill, table["prefill"], f"{where}.prefill")
        for i, entry in enumerate(decode):
            _check_power_of_2(entry.threads, f"{where}.decode[{i}].threads")
        for whole, part in (("rows", "row_threads"), ("tokens", "token_threads")):
            if getattr(prefill, whole) % getattr(prefill, part):
                raise UserError(f"{where}.prefill: {whole} = {getattr(prefill, whole)} must be a multiple of {part}")
        _check_power_of_2(table["threads"], f"{where}.threads")
        return cls(decode, prefill, table["threads"])


Numbers = TypeVar("Numbers", Decode, Prefill)


def _check_keys(kind: type, table: dict[str, Any], where: str) -> None:
    names = [field.name for field in fields(kind)]
    if sorted(table) != sorted(names):
        raise UserError(f"{where} must give {', '.join(names)}; it gives {', '.join(table)}")


def _numbers(kind: type[Numbers], table: dict[str, Any], where: str) -> Numbers:
    _check_keys(kind, table, where)
    for name, value in table.items():
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{where}.{name} = {value!r} must be a positive integer")
    return kind(**table)


def _check_power_of_2(value: Any, where: str) -> None:
    if not isinstance(value, int) or value < 1 or value & (value - 1):
        raise UserError(f"{where} = {value!r} must be a power of 2")
