"""What calibration tells of every linear layer: how much the loss minds an error in each weight."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from skim_export.checkpoint import Architecture, Checkpoint, Linear
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from .workers import in_order, workers

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["LinearStatistics", "calibrate"]

Factors: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"  # x [T, K] and dL/dy [T, N] of one sequence

# All three are fixed: they decide the order of summation, and with it the last bits of the results.
HEAD_TOKENS = 128  # tokens whose logits are in memory at once
GROUP = 16  # sequences whose activations and gradients are in memory at once
ROWS = 256  # of one piece of work


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
            hidden = _forward(pool, model.load_block(index), hidden, arguments[index])
            model.unload_block(index)
            progress.step(f"block {index} forward")
        gradient = _loss_gradient(pool, *model.load_head(), hidden, ids)
        model.unload_head()
        progress.step("loss")
    for index in reversed(range(blocks)):
        with workers(threads) as pool:  # not across the yield: the caller shall have torch's threads back
            backward = _BlockBackward(
                architecture.blocks[index], architecture.block_modules[index], model.load_block(index)
            )
            gradient, statistics = backward.run(pool, inputs.pop(), gradient, arguments[index])
            model.unload_block(index)
        progress.step(f"block {index} backward")
        yield from zip(architecture.blocks[index], statistics, strict=True)
    progress.finish()


def _forward(
    pool: ThreadPoolExecutor, block: nn.Module, hidden: torch.Tensor, arguments: dict[str, Any]
) -> torch.Tensor:
    import torch

    def run(sequence: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            output: torch.Tensor = block(sequence, **arguments)
        return output

    return torch.cat(in_order(pool, run, torch.split(hidden, 1)))


def _loss_gradient(
    pool: ThreadPoolExecutor, norm: nn.Module, head: nn.Module, hidden: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Gradient of the summed next-token loss with respect to the last block's output, `[S, T, hidden]`."""
    import torch

    gradient = torch.zeros_like(hidden)

    def run(sequence: int) -> float:
        total = 0.0
        targets = tokens[sequence, 1:]
        for start in range(0, targets.numel(), HEAD_TOKENS):
            labels = targets[start : start + HEAD_TOKENS]
            rows = slice(start, start + labels.numel())
            x = hidden[sequence, rows].clone().requires_grad_()
            loss = torch.nn.functional.cross_entropy(head(norm(x)), labels, reduction="sum")
            (gradient[sequence, rows],) = torch.autograd.grad(loss, x)
            total += loss.item()
        return total

    losses = in_order(pool, run, range(len(tokens)))
    if not np.isfinite(losses).all():
        bad = int(np.flatnonzero(~np.isfinite(losses))[0])
        raise UserError(
            f"the model's loss on calibration sequence {bad} is {losses[bad]}: its weights overflow float32"
        )
    return gradient


class _BlockBackward:
    """Back-propagation through one decoder block that sees, of each linear layer, x and dL/dy."""

    def __init__(self, linears: list[Linear], prefix: str, block: nn.Module) -> None:
        self._linears = linears
        self._members = [[name.removeprefix(f"{prefix}.") for name in linear.members] for linear in linears]
        self._block = block
        self._seen = threading.local()  # the workers share the block's modules

    def run(
        self, pool: ThreadPoolExecutor, inputs: torch.Tensor, gradient: torch.Tensor, arguments: dict[str, Any]
    ) -> tuple[torch.Tensor, list[LinearStatistics]]:
        """Inputs and gradient of the output `[S, T, hidden]` to the gradient of the input, and the statistics."""
        import torch

        handles = [
            self._block.get_submodule(name).register_forward_hook(partial(self._see, name))
            for names in self._members
            for name in names
        ]
        sequences, length, _ = inputs.shape
        fisher = [torch.zeros(linear.out_features, linear.in_features) for linear in self._linears]
        square = [torch.zeros(linear.in_features) for linear in self._linears]
        hessian = [torch.zeros(linear.in_features, linear.in_features) for linear in self._linears]
        below = []
        for start in range(0, sequences, GROUP):
            group = range(start, min(start + GROUP, sequences))
            results = in_order(pool, lambda s: self._sequence(inputs[s : s + 1], gradient[s : s + 1], arguments), group)
            below += [result[0] for result in results]
            factors = [result[1] for result in results]
            in_order(pool, partial(_add_fisher, fisher, factors), _pieces(fisher))
            in_order(pool, partial(_add_hessian, hessian, factors), _pieces(hessian))
            for of_sequence in factors:
                for total, (x, _) in zip(square, of_sequence, strict=True):
                    total += x.square().sum(dim=0)
        for handle in handles:
            handle.remove()
        for linear, f in zip(self._linears, fisher, strict=True):
            if not torch.isfinite(f).all():
                raise UserError(
                    f"the gradient of {linear.name} on the calibration text is not finite: weights out of range"
                )
        predicted = sequences * (length - 1)
        statistics = [
            LinearStatistics(f.div_(predicted).numpy(), s.div_(predicted).numpy(), _correlation(h).numpy())
            for f, s, h in zip(fisher, square, hessian, strict=True)
        ]
        return torch.cat(below), statistics

    def _see(self, name: str, _: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self._seen.layers[name] = (inputs[0], output)

    def _sequence(
        self, x: torch.Tensor, gradient: torch.Tensor, arguments: dict[str, Any]
    ) -> tuple[torch.Tensor, list[Factors]]:
        """One sequence `[1, T, hidden]`: the gradient of the input, and the factors of every linear layer."""
        import torch

        x = x.clone().requires_grad_()
        seen = self._seen.layers = {}
        output = self._block(x, **arguments)
        names = [name for names in self._members for name in names]
        below, *gradients = torch.autograd.grad(output, [x, *(seen[name][1] for name in names)], gradient)
        by_name = dict(zip(names, gradients, strict=True))
        factors = []
        for members in self._members:
            dy = torch.cat([by_name[name][0] for name in members], dim=1)
            factors.append((seen[members[0]][0][0].detach(), dy))
        return below, factors


def _pieces(sums: list[torch.Tensor]) -> list[tuple[int, slice]]:
    """The rows of all sums in pieces: index of the sum, rows."""
    return [(i, slice(row, row + ROWS)) for i, total in enumerate(sums) for row in range(0, len(total), ROWS)]


def _add_fisher(fisher: list[torch.Tensor], factors: list[list[Factors]], piece: tuple[int, slice]) -> None:
    """Add the sequences' shares, in their order, to a piece of the rows of one linear layer."""
    index, rows = piece
    for of_sequence in factors:
        x, dy = of_sequence[index]
        fisher[index][rows].addmm_(dy[:, rows].square().T, x.square())


def _add_hessian(hessian: list[torch.Tensor], factors: list[list[Factors]], piece: tuple[int, slice]) -> None:
    """The same for the second moments of the inputs, tokens weighted."""
    index, rows = piece
    for of_sequence in factors:
        x, dy = of_sequence[index]
        weight = dy.square().mean(dim=1, keepdim=True).sqrt()
        hessian[index][rows].addmm_((weight * x[:, rows]).T, x)


def _correlation(hessian: torch.Tensor) -> torch.Tensor:
    inverse = hessian.diagonal().rsqrt()
    inverse[~inverse.isfinite()] = 0
    return (hessian * inverse * inverse[:, None]).fill_diagonal_(1)
