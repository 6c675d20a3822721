"""Whether a model that was written computes what transformers computes with the same quantized weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from skim_export.calibration.passes import forward
from skim_export.calibration.streaming import StreamedModel
from skim_export.calibration.workers import workers
from skim_export.checkpoint import Model
from skim_export.packed import PackedLinear
from skim_export.packed.dequantized import DequantizedTensors
from skim_export.work.resources import FLOAT32_BYTES, Resources
from skim_runtime import Session
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

__all__ = ["CHECKED_UNASKED", "check", "checking_bytes"]

SEQUENCES, LENGTH = 2, 64  # tokens are random: what is compared is arithmetic
BOUND = 0.05  # of the relative error: activations of 16 bits, as integers or floats, give 0.01, a mistake far more
CHECKED_UNASKED = 1_500_000_000  # parameters of a model at most that is checked without being asked for: half a minute


def check(
    model: Model,
    weights: Callable[[str], PackedLinear],
    directory: Path,
    *,
    resources: Resources,
    progress: Progress,
) -> float:
    """Compare the logits of an exported directory with those of transformers, block by block, on random tokens.

    Args:
        model: what is not packed is read from it.
        weights: reads the packed weights of a unit.
        directory: what was written.
        resources: threads.
        progress: told of every block.

    Returns:
        The relative error of the logits, all taken together.

    Raises:
        UserError: it is too large, or the directory can't be run.
    """
    architecture = model.architecture
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a model for CUDA runs on the CPU here
        session = Session(directory, threads=resources.threads)
    length = min(LENGTH, session.context_length)
    tokens = np.random.default_rng(0).integers(architecture.vocabulary_size, size=(SEQUENCES, length))
    streamed = StreamedModel(model.replacing(DequantizedTensors(model, weights)))
    progress.start("checking", len(architecture.blocks) + 2)
    with workers(resources.workers) as pool:
        hidden, arguments = streamed.enter(torch.from_numpy(tokens))
        for index in range(len(architecture.blocks)):
            hidden = forward(pool, streamed.load_block(index), hidden, arguments[index])
            streamed.unload_block(index)
            progress.step(f"block {index}")
    norm, head = streamed.load_head()
    difference = size = 0.0
    for sequence, states in zip(tokens, hidden, strict=True):
        with torch.no_grad():
            want = head(norm(states)).numpy()
        difference += float(np.square(session.logits(sequence) - want, dtype=np.float64).sum())
        size += float(np.square(want, dtype=np.float64).sum())
        progress.step("logits")
    progress.finish()
    error = float(np.sqrt(difference / size))
    if not error <= BOUND:
        raise UserError(
            f"{directory}: the model that was written does not compute what transformers computes with its weights: "
            f"the logits of {tokens.size} tokens differ by {error:.2g} (relative; {BOUND:g} is allowed)"
        )
    return error


def checking_bytes(model: Model) -> int:
    """Memory that a check takes: a block, the head or an embedding in float32, dequantized and once more in torch."""
    architecture = model.architecture
    parts = [*architecture.blocks, [architecture.head_linear], *([linear] for linear in architecture.others)]
    return 2 * FLOAT32_BYTES * max(sum(x.out_features * x.in_features for x in part) for part in parts)
