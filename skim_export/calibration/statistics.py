"""The calibration pass: forwards and backwards through the model, one block's weights in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from skim_export.checkpoint import Architecture, Checkpoint, Linear
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from .passes import BlockBackward, forward, head_gradient
from .sums import LinearStatistics, LinearSums
from .vocabulary import embedding_fisher, head_statistics, vocabulary_statistics
from .workers import workers

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["calibrate"]


def calibrate(
    checkpoint: Checkpoint,
    architecture: Architecture,
    tokens: npt.NDArray[np.int64],
    *,
    vocabulary: bool = False,
    threads: int,
    progress: Progress,
) -> Iterator[tuple[Linear, LinearStatistics]]:
    """Statistics of every linear layer in the decoder blocks, from the last block to the first.

    One block's weights are in memory at a time, and the input of every block: S * T * hidden floats a block. The
    results do not depend on `threads`, to the last bit.

    Args:
        checkpoint: the model.
        architecture: of the model.
        tokens: int64 `[S, T]`: S sequences of T tokens, e.g. 16 of 512.
        vocabulary: also of embedding and head, at the end.
        threads: sequences that are worked on at the same time.
        progress: sees one stage, "calibrating", that lasts until the iterator is exhausted.

    Raises:
        UserError: the loss or a gradient is not finite.
    """
    import torch

    from .streaming import StreamedModel

    length = tokens.shape[1]
    if length < 2:
        raise UserError(f"calibration sequences must have at least 2 tokens, got {length}")
    blocks = len(architecture.blocks)
    progress.start("calibrating", 2 * blocks + 1)
    model = StreamedModel(checkpoint, architecture)
    ids = torch.from_numpy(tokens)
    with workers(threads) as pool:
        hidden, arguments = pool.submit(model.enter, ids).result()
        inputs = []  # of every block, [S, T, hidden]
        for index in range(blocks):
            inputs.append(hidden)
            hidden = forward(pool, model.load_block(index), hidden, arguments[index])
            model.unload_block(index)
            progress.step(f"block {index} forward")
        norm, head = model.load_head()
        of_head = head_statistics(pool, norm, head, hidden, ids) if vocabulary else None
        gradient = _loss_gradient(pool, norm, head, hidden, ids)
        model.unload_head()
        progress.step("loss")
    for index in reversed(range(blocks)):
        linears = architecture.blocks[index]
        with workers(threads) as pool:  # not across the yield: the caller shall have torch's threads back
            sums = LinearSums(pool, linears)
            backward = BlockBackward(linears, architecture.block_modules[index], model.load_block(index))
            gradient, _ = backward.run(pool, inputs.pop(), gradient, arguments[index], sums.add)
            model.unload_block(index)
        progress.step(f"block {index} backward")
        yield from zip(linears, sums.statistics(predicted=ids[:, 1:].numel()), strict=True)
    if of_head is not None:
        fisher = embedding_fisher(ids, gradient, architecture.vocabulary_size)
        yield from vocabulary_statistics(architecture, of_head, fisher)
    progress.finish()


def _loss_gradient(
    pool: ThreadPoolExecutor, norm: nn.Module, head: nn.Module, hidden: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Gradient of the summed next-token loss in the last block's output, `[S, T, hidden]`."""
    import torch

    def loss(logits: torch.Tensor, sequence: int, rows: slice) -> torch.Tensor:
        labels = tokens[sequence, 1:][rows]
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

    losses, gradient, _ = head_gradient(pool, norm, head, hidden, loss)
    if not np.isfinite(losses).all():
        bad = int(np.flatnonzero(~np.isfinite(losses))[0])
        raise UserError(
            f"the model's loss on calibration sequence {bad} is {losses[bad]}: its weights overflow float32"
        )
    return gradient
