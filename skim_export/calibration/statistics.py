"""The calibration pass: forwards and backwards through the model, one block's weights in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from skim_export.checkpoint import Architecture, Linear, Model
from skim_export.work.resources import Resources
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from .activations import Activations
from .passes import BlockBackward, forward, head_gradient
from .sums import LinearStatistics, LinearSums
from .vocabulary import embedding_fisher, head_statistics, vocabulary_statistics
from .workers import workers

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["calibrate", "loss_gradient"]


def calibrate(
    model: Model,
    tokens: npt.NDArray[np.int64],
    activations: Activations,
    *,
    vocabulary: bool = False,
    is_kept: Callable[[Linear], bool] = lambda linear: False,
    resources: Resources,
    progress: Progress,
) -> Iterator[tuple[Linear, LinearStatistics]]:
    """Statistics of every linear layer in the decoder blocks, from the last block to the first.

    One block's weights are in memory at a time, and what goes into it; the inputs of the other blocks are on disk. The
    results do not depend on the number of threads, to the last bit. An iterator that was given up halfway can be
    followed by another on the same activations, which goes on with the first block of which not all layers are kept.

    Args:
        model: the model.
        tokens: int64 `[S, T]`: S sequences of T tokens, e.g. 16 of 512.
        activations: of these tokens, as far as they were computed before; S * T * hidden floats for each block.
        vocabulary: also of embedding and head, at the end.
        is_kept: whether the caller has kept the statistics of a layer from before.
        resources: workers, each with a sequence at a time, and the device with the block in memory, its activations and
            its statistics.
        progress: sees one stage, "calibrating", that lasts until the iterator is exhausted.

    Raises:
        UserError: the loss or a gradient is not finite.
    """
    import torch

    from .streaming import StreamedModel

    length = tokens.shape[1]
    if length < 2:
        raise UserError(f"calibration sequences must have at least 2 tokens, got {length}")
    architecture = model.architecture
    blocks = len(architecture.blocks)
    progress.start("calibrating", 2 * blocks + 1)
    streamed = StreamedModel(model, resources.device)
    ids = torch.from_numpy(tokens)
    done = _blocks_done(architecture, activations, is_kept)
    with workers(resources.workers) as pool:
        hidden, arguments = pool.submit(streamed.enter, ids).result()
        if not activations.has_input(0):
            activations.write_input(0, hidden)
        for index in range(blocks):
            needed = index + 1 < done or (index + 1 == blocks and (done > blocks or vocabulary))
            if needed and not activations.has_input(index + 1):
                hidden = forward(pool, streamed.load_block(index), activations.input(index), arguments[index])
                activations.write_input(index + 1, hidden)
                streamed.unload_block(index)
            progress.step(f"block {index} forward")
        del hidden
        norm, head = streamed.load_head()
        of_head = head_statistics(pool, norm, head, activations.input(blocks), ids) if vocabulary else None
        if done > blocks:
            output = activations.input(blocks)
            activations.write_gradient(blocks, loss_gradient(pool, norm, head, output, ids))
            del output
        streamed.unload_head()
        progress.step("loss")
    for index in reversed(range(blocks)):
        if index < done:
            linears = architecture.packed_blocks[index]
            with workers(resources.workers) as pool:  # not across the yield: the caller shall have torch's threads back
                sums = LinearSums(pool, linears, resources.device)
                backward = BlockBackward(linears, architecture.block_modules[index], streamed.load_block(index))
                below, _ = backward.run(
                    pool, activations.input(index), activations.gradient(index + 1), arguments[index], sums.add
                )
                streamed.unload_block(index)
            yield from zip(linears, sums.statistics(predicted=ids[:, 1:].numel()), strict=True)
            activations.write_gradient(index, below)
            activations.remove_gradient(index + 1)
            if index + 1 < blocks:  # the head may need the output again
                activations.remove_input(index + 1)
        progress.step(f"block {index} backward")
    if of_head is not None:
        scale = streamed.embedding_scale()
        fisher = embedding_fisher(ids, activations.gradient(0), architecture.vocabulary_size, scale)
        yield from vocabulary_statistics(architecture, of_head, fisher)
    progress.finish()


def _blocks_done(architecture: Architecture, activations: Activations, is_kept: Callable[[Linear], bool]) -> int:
    """The first block of those at the end that are done, number B + 1 if not even the gradient of the loss is known."""
    blocks = len(architecture.blocks)
    done = blocks + 1
    for index in reversed(range(blocks + 1)):
        if index < blocks and not all(is_kept(linear) for linear in architecture.packed_blocks[index]):
            break
        if activations.has_gradient(index):
            done = index
    return done


def loss_gradient(
    pool: ThreadPoolExecutor, norm: nn.Module, head: nn.Module, hidden: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Gradient of the summed next-token loss in the last block's output, `[S, T, hidden]`."""
    import torch

    def loss(logits: torch.Tensor, sequence: int, rows: slice) -> torch.Tensor:
        labels = tokens[sequence, 1:][rows].to(logits.device)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

    losses, gradient, _ = head_gradient(pool, norm, head, hidden, loss)
    if not np.isfinite(losses).all():
        bad = next(loss for loss in losses if not np.isfinite(loss))
        raise UserError(f"the model's loss on the calibration text is {bad}: its weights overflow float32")
    return gradient
