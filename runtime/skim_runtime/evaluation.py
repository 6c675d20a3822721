"""How good a model is: perplexity, and its distance from a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from skim_runtime.errors import UserError
from skim_runtime.extensions import extension
from skim_runtime.progress import Progress
from skim_runtime.session import Session
from skim_runtime.tokenizer import Tokenizer

__all__ = ["Evaluation", "Model", "compare", "evaluate", "log_softmax", "open_reference", "perplexity_error"]

CONTEXT = 1024  # tokens of a window, by default
ENOUGH_WINDOWS = 8  # for their variance to be worth something
POSITIONS_TOGETHER = 64  # whose distributions are compared at once: bounds the memory for float64


class Model(Protocol):
    """Anything that gives logits, as `Session` does."""

    def logits(self, input_ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Logits, float32 `[S, V]`, of the tokens `[S]`."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; the comparisons are None without a reference.

    Attributes:
        tokens: predicted tokens.
        context: tokens of a window.
        perplexity: exp of the mean negative log likelihood.
        perplexity_error: its standard error, see `perplexity_error`; None if a single token was predicted.
        reference_perplexity: that of the reference.
        reference_perplexity_error: its standard error.
        kl_mean: mean of KL(reference || model) over the predicted tokens, in nats.
        kl_p99: its 99th percentile.
        top1_agreement: share of positions where both find the same token most likely.
    """

    tokens: int
    context: int
    perplexity: float
    perplexity_error: float | None
    reference_perplexity: float | None = None
    reference_perplexity_error: float | None = None
    kl_mean: float | None = None
    kl_p99: float | None = None
    top1_agreement: float | None = None


def evaluate(
    session: Session,
    text: str | Sequence[int],
    *,
    reference: Model | str | Path | None = None,
    context: int | None = None,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on a text.

    The text is cut into windows of `context` tokens that do not overlap; the last may be shorter. No BOS is added. Each
    token but the first of a window is predicted from those before it in the window.

    Args:
        session: the model.
        text: a text, or its tokens.
        reference: what to compare with: another exported directory, or a model for torch in float32 (an alias, a
            Hugging Face id, directory or GGUF file), or anything with `logits`.
        context: tokens of a window; 1024, or the model's context if it is less, by default.
        max_tokens: only so many tokens of the text.
        progress: told about every window.

    Raises:
        UserError: the text or an option is too short or too long, or the reference has another vocabulary.
    """
    if context is None:
        context = min(CONTEXT, session.context_length)
    if not 2 <= context <= session.context_length:
        raise UserError(f"context must be from 2 to {session.context_length}, the model's own, got {context}")
    if max_tokens is not None and max_tokens < 2:
        raise UserError(f"tokens must be at least 2, got {max_tokens}")
    tokens = Tokenizer(session.directory.path).encode(text) if isinstance(text, str) else list(text)
    ids = np.asarray(tokens[:max_tokens], np.int64)
    if ids.size < 2:
        raise UserError(f"the text has {ids.size} tokens; at least 2 are needed")
    progress = progress or Progress()
    if isinstance(reference, str | Path):
        reference = open_reference(reference, progress)
    return compare(session, ids, reference, context, progress)


def compare(
    model: Model, ids: npt.NDArray[np.int64], reference: Model | None, context: int, progress: Progress
) -> Evaluation:
    """What `evaluate` does, for anything that gives logits and tokens `[S]`, S at least 2."""
    windows = [ids[i : i + context] for i in range(0, ids.size - 1, context)]
    own_loss: list[npt.NDArray[np.float64]] = []  # by window
    reference_loss: list[npt.NDArray[np.float64]] = []
    kl, agreement = [], []
    progress.start("evaluating", len(windows))
    for i, window in enumerate(windows):
        logits = model.logits(window)[:-1]
        other = None if reference is None else reference.logits(window)[:-1]
        if other is not None and other.shape != logits.shape:
            raise UserError(f"the reference has a vocabulary of {other.shape[1]} tokens, the model {logits.shape[1]}")
        own, of_reference = [], []
        for row in range(0, len(logits), POSITIONS_TOGETHER):
            rows = slice(row, row + POSITIONS_TOGETHER)
            log_q = log_softmax(logits[rows])
            target = window[1:][rows, None]
            own.append(-np.take_along_axis(log_q, target, axis=1))
            if other is not None:
                log_p = log_softmax(other[rows])
                of_reference.append(-np.take_along_axis(log_p, target, axis=1))
                kl.append(np.einsum("mv,mv->m", np.exp(log_p), log_p - log_q))
                agreement.append(log_p.argmax(axis=1) == log_q.argmax(axis=1))
        own_loss.append(np.concatenate(own)[:, 0])
        if other is not None:
            reference_loss.append(np.concatenate(of_reference)[:, 0])
        progress.step(f"window {i + 1}")
    progress.finish()

    tokens = sum(losses.size for losses in own_loss)
    if reference is None:
        return Evaluation(tokens, context, _perplexity(own_loss), perplexity_error(own_loss))
    divergence = np.concatenate(kl)
    return Evaluation(
        tokens=tokens,
        context=context,
        perplexity=_perplexity(own_loss),
        perplexity_error=perplexity_error(own_loss),
        reference_perplexity=_perplexity(reference_loss),
        reference_perplexity_error=perplexity_error(reference_loss),
        kl_mean=float(divergence.mean()),
        kl_p99=float(np.percentile(divergence, 99)),
        top1_agreement=float(np.concatenate(agreement).mean()),
    )


def open_reference(model: str | Path, progress: Progress) -> Model:
    """An exported directory as a `Session`; everything else is for torch, and skim-export loads it.

    Raises:
        UserError: it cannot be loaded, or skim-export is not installed.
    """
    if (Path(model) / "genai_config.json").is_file():
        return Session(model)
    load = extension("torch-reference", f"the reference {model}, a model for torch,")
    reference: Model = load(model, progress=progress)
    return reference


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Along the last axis, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def perplexity_error(losses: Sequence[npt.NDArray[np.float64]]) -> float | None:
    """Standard error of a perplexity: that of the mean loss, times the perplexity (the delta method).

    Losses in one window are correlated, since they share their text. From 8 windows on each window counts as one draw:
    the error comes from how far the sums of the windows are from what the mean would make them. For fewer windows,
    tokens count as independent, and the error is too small.

    Args:
        losses: of the predicted tokens, an array for each window.

    Returns:
        The standard error, or None if there is a single loss.
    """
    every = np.concatenate(losses)
    if every.size < 2:
        return None
    mean, windows = every.mean(), len(losses)
    if windows < ENOUGH_WINDOWS:
        error = every.std(ddof=1) / np.sqrt(every.size)
    else:
        excess = np.array([window.sum() - window.size * mean for window in losses])
        error = np.sqrt(windows / (windows - 1) * np.sum(excess**2)) / every.size
    return float(np.exp(mean) * error)


def _perplexity(losses: Sequence[npt.NDArray[np.float64]]) -> float:
    return float(np.exp(np.concatenate(losses).mean()))
