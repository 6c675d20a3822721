"""What calibration tells of every linear layer: how much the loss minds an error in each weight."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from skim_export.checkpoint import Architecture, Checkpoint, Linear
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from .passes import BlockBackward, Factors, add_in_pieces, forward, head_gradient
from .workers import workers

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["LinearStatistics", "calibrate"]


@dataclass(frozen=True)
class LinearStatistics:
    """What the calibration tokens t tell of one linear layer y = W x.

    Attributes:
        fisher: float32 `[N, K]`, the diagonal of the empirical Fisher information,
            F[n, k] = 1/P * sum_t (dL/dy[t, n])^2 * x[t, k]^2, where L is the sum of the next-token losses of a sequence
            and P the number of predicted tokens of all sequences. An error d in the weights raises the mean loss, in
            nats a token, by about 0.5 * sum F * d^2. The tokens are taken as independent; SqueezeLLM (arXiv
            2306.07629) squares the gradient of a whole sequence instead, and so needs many more sequences.
        input_square: float32 `[K]`, the mean squares of the inputs.
        correlation: float32 `[K, K]`, how the inputs go together: C[j, k] = sum_t w_t * x[t, j] * x[t, k], brought to 1
            on its diagonal; 0 elsewhere for inputs that are always 0. A token's weight w_t is the root mean square of
            dL/dy[t]: tokens that matter to the loss count more (GuidedQuant, arXiv 2505.07004, section 3, squares it,
            but squared gradients have such heavy tails that few tokens would remain).
    """

    fisher: npt.NDArray[np.float32]
    input_square: npt.NDArray[np.float32]
    correlation: npt.NDArray[np.float32]


def calibrate(
    checkpoint: Checkpoint,
    architecture: Architecture,
    tokens: npt.NDArray[np.int64],
    *,
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
        gradient = _loss_gradient(pool, *model.load_head(), hidden, ids)
        model.unload_head()
        progress.step("loss")
    for index in reversed(range(blocks)):
        linears = architecture.blocks[index]
        with workers(threads) as pool:  # not across the yield: the caller shall have torch's threads back
            sums = _Sums(pool, linears)
            backward = BlockBackward(linears, architecture.block_modules[index], model.load_block(index))
            gradient, _ = backward.run(pool, inputs.pop(), gradient, arguments[index], sums.add)
            model.unload_block(index)
        progress.step(f"block {index} backward")
        yield from zip(linears, sums.statistics(predicted=ids[:, 1:].numel()), strict=True)
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


class _Sums:
    """What is summed over the tokens for the linear layers of a block."""

    def __init__(self, pool: ThreadPoolExecutor, linears: list[Linear]) -> None:
        import torch

        self._pool = pool
        self._linears = linears
        self._fisher = [torch.zeros(linear.out_features, linear.in_features) for linear in linears]
        self._square = [torch.zeros(linear.in_features) for linear in linears]
        self._moments = [torch.zeros(linear.in_features, linear.in_features) for linear in linears]

    def add(self, factors: list[list[Factors]]) -> None:
        """Add some sequences."""
        add_in_pieces(self._pool, self._fisher, factors, _add_fisher)
        add_in_pieces(self._pool, self._moments, factors, _add_moments)
        for of_sequence in factors:
            for total, (x, _) in zip(self._square, of_sequence, strict=True):
                total += x.square().sum(dim=0)

    def statistics(self, predicted: int) -> list[LinearStatistics]:
        """The statistics of the layers after all sequences, with so many predicted tokens."""
        import torch

        for linear, fisher in zip(self._linears, self._fisher, strict=True):
            if not torch.isfinite(fisher).all():
                raise UserError(
                    f"the gradient of {linear.name} on the calibration text is not finite: weights out of range"
                )
        return [
            LinearStatistics(f.div_(predicted).numpy(), s.div_(predicted).numpy(), _correlation(m).numpy())
            for f, s, m in zip(self._fisher, self._square, self._moments, strict=True)
        ]


def _add_fisher(fisher: torch.Tensor, rows: slice, x: torch.Tensor, dy: torch.Tensor) -> None:
    fisher.addmm_(dy[:, rows].square().T, x.square())


def _add_moments(moments: torch.Tensor, rows: slice, x: torch.Tensor, dy: torch.Tensor) -> None:
    weight = dy.square().mean(dim=1, keepdim=True).sqrt()
    moments.addmm_((weight * x[:, rows]).T, x)


def _correlation(moments: torch.Tensor) -> torch.Tensor:
    inverse = moments.diagonal().rsqrt()
    inverse[~inverse.isfinite()] = 0
    return (moments * inverse * inverse[:, None]).fill_diagonal_(1)
