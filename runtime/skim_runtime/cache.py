"""The memory of a decoder: its states after the tokens so far."""

from __future__ import annotations

from collections.abc import Sequence

from skim_runtime.states import State

__all__ = ["DecoderCache"]


class DecoderCache:
    """The buffers of all states, for each a pair: where a step finds it, and where it leaves it.

    GroupQueryAttention writes new tokens into the buffer that it reads the past from, if its past and present are the
    same memory, so nothing is copied from token to token: the two are one buffer `[1, KV heads, capacity, head size]`.
    When it is full, all grow. A state of fixed size has two buffers that take turns: its operators do not promise to
    read all of the past before they write, and a step that fails leaves the past as it was.

    Attributes:
        length: tokens so far.
        capacity: tokens that there is room for.
        buffers: the pairs, in the order of the states.
        turn: which of a pair a step finds the states in, 0 or 1; it leaves them in the other.

    Args:
        states: of the graph.
    """

    def __init__(self, states: Sequence[State]) -> None:
        self._states = states
        self.clear(0)

    def clear(self, capacity: int) -> None:
        """Forget everything and make room for `capacity` tokens."""
        self.length = self.turn = 0
        self.capacity = capacity
        self.buffers = []
        for state in self._states:
            buffer = state.zeros(capacity)
            self.buffers.append((buffer, buffer if state.grows else state.zeros()))

    def reserve(self, tokens: int) -> bool:
        """Make room for `tokens` more; true if buffers moved."""
        needed = self.length + tokens
        if needed <= self.capacity:
            return False
        self.capacity = max(needed, 2 * self.capacity)
        for i, state in enumerate(self._states):
            if state.grows:
                old, new = self.buffers[i][0], state.zeros(self.capacity)
                new[:, :, : self.length] = old[:, :, : self.length]
                self.buffers[i] = (new, new)
        return True

    def advance(self, tokens: int) -> None:
        """A step has appended `tokens`."""
        self.length += tokens
        self.turn = 1 - self.turn
