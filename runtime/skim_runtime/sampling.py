"""Choosing the next token from its logits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skim_runtime.errors import UserError

__all__ = ["Sampler"]


class Sampler:
    """Draws tokens; the same seed and logits give the same tokens.

    Args:
        temperature: 0 takes the most likely token (greedy), 1 the model's own distribution.
        top_k: only the `top_k` most likely tokens; 0 means all.
        top_p: only the smallest set of most likely tokens with this probability together (nucleus sampling,
            Holtzman et al. 2020); 1 means all.
        seed: of the random numbers; None takes a fresh one.

    Raises:
        UserError: a value is out of its range.
    """

    def __init__(
        self, *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int | None = None
    ) -> None:
        if not 0 <= temperature < float("inf"):
            raise UserError(f"temperature must be at least 0, got {temperature}")
        if top_k < 0:
            raise UserError(f"top_k must be at least 0 (0: all tokens), got {top_k}")
        if not 0 < top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, got {top_p}")
        if seed is not None and seed < 0:
            raise UserError(f"seed must be at least 0, got {seed}")
        self._temperature = temperature
        self._top_k = top_k
        self._top_p = top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: npt.NDArray[np.float32]) -> int:
        """One token from the logits `[V]`."""
        if self._temperature == 0:
            return int(np.argmax(logits))
        tokens = np.arange(logits.size)
        if 0 < self._top_k < logits.size:
            tokens = np.argpartition(logits, -self._top_k)[-self._top_k :]
        scaled = logits[tokens].astype(np.float64) / self._temperature
        probability = np.exp(scaled - scaled.max())
        probability /= probability.sum()
        if self._top_p < 1:
            # Tokens this unlikely lie outside the nucleus even if it leaves out all of them: no need to sort them.
            likely = probability >= (1 - self._top_p) / probability.size
            tokens, probability = tokens[likely], probability[likely]
            order = np.argsort(-probability, kind="stable")
            before = np.cumsum(probability[order]) - probability[order]
            nucleus = order[before < self._top_p]
            tokens, probability = tokens[nucleus], probability[nucleus]
        cumulative = np.cumsum(probability)
        drawn = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(tokens[drawn])
