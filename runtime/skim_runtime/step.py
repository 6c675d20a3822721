"""What goes into a step of a decoder and what comes out: token ids and logits, checked."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skim_runtime.errors import UserError

__all__ = ["PROMPT_CHUNK", "as_batch", "finite"]

PROMPT_CHUNK = 512  # tokens of a prompt in one run: bounds the memory for their logits


def as_batch(input_ids: npt.ArrayLike, past: int, context_length: int, vocabulary: int) -> npt.NDArray[np.int64]:
    """Tokens that follow `past` others, as a batch of one, int64 `[1, S]`.

    Raises:
        UserError: they are not a vector of at least one whole number from 0 to V - 1, or too many for the context.
    """
    try:
        ids = np.asarray(input_ids)
    except ValueError:  # lists of unequal lengths
        ids = np.empty((0, 0))
    if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        shape = f"an array of {ids.dtype} of shape {ids.shape}"
        raise UserError(f"tokens must be a vector of whole numbers, at least one; got {shape}")
    wrong = ids[(ids < 0) | (ids >= vocabulary)]
    if wrong.size:
        raise UserError(f"token {wrong[0]}: the model knows those from 0 to {vocabulary - 1}")
    if past + ids.size > context_length:
        raise UserError(f"{past + ids.size} tokens do not fit the model's context of {context_length}")
    return ids.astype(np.int64)[None]


def finite(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The logits `[S, V]` themselves.

    Raises:
        UserError: one of them is not a number, or infinite.
    """
    if not np.isfinite(logits.max(axis=-1)).all():  # the largest is not a number if any is none
        raise UserError("the model's logits are not finite: its weights may be damaged")
    return logits
