"""How the kernels are laid out for a GPU: a few numbers, stated in a target's file."""

from __future__ import annotations

from dataclasses import dataclass

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
        rows: of a tile.
        tokens: of a tile.
        blocks: of 32 columns that a step takes, a power of 2.
        row_threads: threads over the rows of a tile; each has rows / row_threads of them.
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
        decode: kernels for few tokens, in ascending order of `tokens`: the first that takes all tokens is used.
        prefill: the kernel for more tokens than those take.
        threads: of the workgroups of kernels that prepare activations or gather rows, a power of 2.
    """

    decode: tuple[Decode, ...]
    prefill: Prefill
    threads: int
