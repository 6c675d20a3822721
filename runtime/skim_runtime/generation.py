"""The generation loop, the same for every engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from skim_runtime.errors import UserError
from skim_runtime.sampling import Sampler
from skim_runtime.step import PROMPT_CHUNK

__all__ = ["Engine", "Generation", "generate"]


class Engine(Protocol):
    """Whatever continues a text: `Session` and `GenaiSession`."""

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""

    def reset(self, capacity: int = 0) -> None:
        """Forget all tokens and make room for `capacity`."""

    def step(self, input_ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Append tokens; the last row of what is returned, `[.., V]`, are the logits of the next token."""


@dataclass(frozen=True)
class Generation:
    """What was generated.

    Attributes:
        tokens: new tokens, without the stop token.
        prompt_tokens: tokens of the prompt.
        prompt_seconds: until the first new token was known.
        decode_tokens: new tokens after the first, the stop token included.
        decode_seconds: the time that they took.
        stopped: whether a stop token ended it (otherwise `max_new_tokens` or the model's context length).
    """

    tokens: list[int]
    prompt_tokens: int
    prompt_seconds: float
    decode_tokens: int
    decode_seconds: float
    stopped: bool

    @property
    def prompt_speed(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prompt_seconds

    @property
    def decode_speed(self) -> float:
        """New tokens per second, the first one not counted; 0 if there is no other."""
        return self.decode_tokens / self.decode_seconds if self.decode_tokens else 0.0


def generate(
    session: Engine,
    tokens: Sequence[int],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: Collection[int] | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Generation:
    """Continue the prompt `tokens`; what the session held before is forgotten.

    Args:
        session: the model.
        tokens: the prompt.
        max_new_tokens: at most so many; the model's context length is a limit, too.
        temperature: 0 is greedy decoding; see `Sampler`.
        top_k: see `Sampler`.
        top_p: see `Sampler`.
        seed: see `Sampler`.
        stop: tokens that end the text; by default the model's own.
        on_token: called with each new token at once, the stop token excepted.

    Raises:
        UserError: the prompt is empty or fills the model's context, or an option is out of its range.
    """
    sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not tokens:
        raise UserError("the prompt is empty")
    room = session.context_length - len(tokens)
    if room < 1:
        raise UserError(f"the prompt has {len(tokens)} tokens, but the model's context only {session.context_length}")
    limit = min(max_new_tokens, room)
    stop = session.eos_token_ids if stop is None else stop
    session.reset(len(tokens) + limit)

    started = time.perf_counter()
    for chunk in range(0, len(tokens), PROMPT_CHUNK):
        logits = session.step(tokens[chunk : chunk + PROMPT_CHUNK])
    token = sampler(logits[-1])
    prompt_done = time.perf_counter()
    new: list[int] = []
    decoded = 0
    while token not in stop:
        new.append(token)
        if on_token is not None:
            on_token(token)
        if len(new) == limit:
            break
        token = sampler(session.step([token])[-1])
        decoded += 1
    return Generation(
        tokens=new,
        prompt_tokens=len(tokens),
        prompt_seconds=prompt_done - started,
        decode_tokens=decoded,
        decode_seconds=time.perf_counter() - prompt_done,
        stopped=token in stop,
    )
