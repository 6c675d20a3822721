"""The calibration pass cut into pieces that do not wait for each other: sequences first, then blocks.

Some sequences go through the whole model, forwards and backwards, and leave what went into every block and the gradient
there: their trace. With the traces of all sequences, the statistics of one block need no other block. A block is run
forwards and backwards once more than in `calibrate`, and the statistics are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from skim_export.checkpoint import Linear, Model
from skim_export.work.resources import Resources

from .activations import Activations
from .passes import BlockBackward, forward
from .statistics import loss_gradient
from .sums import LinearStatistics, LinearSums
from .vocabulary import embedding_fisher, head_statistics, vocabulary_statistics
from .workers import workers

__all__ = ["block_statistics", "trace_sequences", "traced_vocabulary_statistics"]


def trace_sequences(
    model: Model,
    tokens: npt.NDArray[np.int64],
    trace: Activations,
    *,
    resources: Resources,
) -> None:
    """Run some sequences through the model and back, one block's weights in memory at a time.

    What the trace has already is not computed again.

    Args:
        model: the model.
        tokens: int64 `[S, T]`.
        trace: gets the inputs of all blocks and the gradients there.
        resources: workers, each with a sequence at a time, and the device.

    Raises:
        UserError: the loss is not finite.
    """
    import torch

    from .streaming import StreamedModel

    blocks = len(model.architecture.blocks)
    ids, streamed = torch.from_numpy(tokens), StreamedModel(model, resources.device)
    with workers(resources.workers) as pool:
        hidden, arguments = pool.submit(streamed.enter, ids).result()
        if not trace.has_input(0):
            trace.write_input(0, hidden)
        for index in range(blocks):
            if not trace.has_input(index + 1):
                block = streamed.load_block(index)
                trace.write_input(index + 1, forward(pool, block, trace.input(index), arguments[index]))
                streamed.unload_block(index)
        if not trace.has_gradient(blocks):
            norm, head = streamed.load_head()
            trace.write_gradient(blocks, loss_gradient(pool, norm, head, trace.input(blocks), ids))
            streamed.unload_head()
        for index in reversed(range(blocks)):
            if not trace.has_gradient(index):
                backward = BlockBackward([], model.architecture.block_modules[index], streamed.load_block(index))
                above = trace.gradient(index + 1)
                below, _ = backward.run(pool, trace.input(index), above, arguments[index], lambda factors: None)
                trace.write_gradient(index, below)
                streamed.unload_block(index)


def block_statistics(
    model: Model,
    index: int,
    tokens: npt.NDArray[np.int64],
    traces: Sequence[Activations],
    *,
    resources: Resources,
) -> Iterator[tuple[Linear, LinearStatistics]]:
    """Statistics of the linear layers of one block.

    Args:
        model: the model.
        index: of the block.
        tokens: int64 `[S, T]`, of all sequences.
        traces: of all sequences, in their order.
        resources: workers, each with a sequence at a time, and the device.

    Raises:
        UserError: a gradient is not finite.
    """
    import torch

    from .streaming import StreamedModel

    linears, streamed = model.architecture.packed_blocks[index], StreamedModel(model, resources.device)
    with workers(resources.workers) as pool:
        _, arguments = pool.submit(streamed.enter, torch.from_numpy(tokens)).result()
        sums = LinearSums(pool, linears, resources.device)
        backward = BlockBackward(linears, model.architecture.block_modules[index], streamed.load_block(index))
        first = 0
        for trace in traces:
            inputs = trace.input(index)
            some = slice(first, first := first + len(inputs))
            backward.run(pool, inputs, trace.gradient(index + 1), arguments[index].part(some), sums.add)
        streamed.unload_block(index)
    yield from zip(linears, sums.statistics(predicted=tokens[:, 1:].size), strict=True)


def traced_vocabulary_statistics(
    model: Model,
    tokens: npt.NDArray[np.int64],
    traces: Sequence[Activations],
    *,
    resources: Resources,
) -> Iterator[tuple[Linear, LinearStatistics]]:
    """Statistics of embedding and head; the arguments are those of `block_statistics`."""
    import torch

    from .streaming import StreamedModel

    architecture = model.architecture
    ids, streamed = torch.from_numpy(tokens), StreamedModel(model, resources.device)
    with workers(resources.workers) as pool:
        norm, head = streamed.load_head()
        output = torch.cat([trace.input(len(architecture.blocks)) for trace in traces])
        of_head = head_statistics(pool, norm, head, output, ids)
    gradient = torch.cat([trace.gradient(0) for trace in traces])
    fisher = embedding_fisher(ids, gradient, architecture.vocabulary_size, streamed.embedding_scale())
    yield from vocabulary_statistics(architecture, of_head, fisher)
