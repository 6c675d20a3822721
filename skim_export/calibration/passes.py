"""Forward and backward passes through one decoder block at a time.

Activations and gradients are float32 `[S, T, hidden]` for S sequences of T tokens, on the CPU; what a sequence needs is
brought to where the block's weights are. The sequences are shared out over
the workers of a pool; sums over them are taken in their order, so that results do not depend on the number of workers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from skim_export.checkpoint import Linear
from skim_export.work.heap import return_freed_memory
from skim_export.work.resources import ROW_GROUP

from .arguments import Arguments
from .workers import in_order

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["BlockBackward", "Factors", "add_in_pieces", "forward", "head_gradient", "head_values"]

Factors: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"  # x [T, K] and dL/dy [T, N] of one sequence
Loss: TypeAlias = "Callable[[torch.Tensor, int, slice], torch.Tensor]"  # of logits [m, V], a sequence, its positions

# Fixed: they decide the order of summation, and with it the last bits of the results.
HEAD_TOKENS = 128  # tokens whose logits are in memory at once
PIECE_ROWS = ROW_GROUP  # of one piece of work

SEQUENCES_TOGETHER = 8  # whose activations and gradients are in memory at once


def forward(pool: ThreadPoolExecutor, block: nn.Module, hidden: torch.Tensor, arguments: Arguments) -> torch.Tensor:
    """The output of a block."""
    import torch

    device = _device(block)

    def run(sequence: int) -> torch.Tensor:
        with torch.no_grad():
            output: torch.Tensor = block(hidden[sequence, None].to(device), **arguments.of(sequence, device))
        return output.cpu()

    return torch.cat(in_order(pool, run, range(len(hidden))))


def head_values(
    pool: ThreadPoolExecutor, norm: nn.Module, head: nn.Module, hidden: torch.Tensor, loss: Loss
) -> list[float]:
    """The loss of every sequence, summed over all of its positions but the last."""
    import torch

    device = _device(head)

    def run(sequence: int) -> float:
        with torch.no_grad():
            return sum(
                loss(head(norm(hidden[sequence, rows].to(device))), sequence, rows).item()
                for rows in _positions(hidden.shape[1])
            )

    return in_order(pool, run, range(len(hidden)))


def head_gradient(
    pool: ThreadPoolExecutor,
    norm: nn.Module,
    head: nn.Module,
    hidden: torch.Tensor,
    loss: Loss,
    trained: Sequence[torch.Tensor] = (),
) -> tuple[list[float], torch.Tensor, list[torch.Tensor]]:
    """The losses as above, their gradient in `hidden`, and that of their sum in each of the `trained` parameters."""
    import torch

    device = _device(head)
    gradient = torch.zeros_like(hidden)

    def run(sequence: int) -> tuple[float, list[torch.Tensor]]:
        total = 0.0
        sums = [torch.zeros_like(parameter) for parameter in trained]
        for rows in _positions(hidden.shape[1]):
            x = hidden[sequence, rows].to(device, copy=True).requires_grad_()
            value = loss(head(norm(x)), sequence, rows)
            gradient[sequence, rows], *further = torch.autograd.grad(value, [x, *trained])
            for sum_, part in zip(sums, further, strict=True):
                sum_ += part
            total += value.item()
        return total, sums

    results = in_order(pool, run, range(len(hidden)))
    return [total for total, _ in results], gradient, _sums([sums for _, sums in results])


def _device(module: nn.Module) -> torch.device:
    """Where the weights of a module are."""
    return next(module.parameters()).device


def _positions(length: int) -> list[slice]:
    """The positions that predict a token, in runs."""
    return [slice(start, min(start + HEAD_TOKENS, length - 1)) for start in range(0, length - 1, HEAD_TOKENS)]


class BlockBackward:
    """Back-propagation through one decoder block that sees, of each linear layer, x and dL/dy.

    Args:
        linears: the linear layers of the block.
        prefix: module path of the block.
        block: the block, its weights loaded.
        trained: parameters, other than those of the linear layers, whose gradients are wanted.
    """

    def __init__(
        self, linears: list[Linear], prefix: str, block: nn.Module, trained: Sequence[torch.Tensor] = ()
    ) -> None:
        self._members = [
            [(member.module.removeprefix(f"{prefix}."), member.rows) for member in linear.members] for linear in linears
        ]
        self._names = list(dict.fromkeys(name for members in self._members for name, _ in members))
        self._block = block
        self._trained = list(trained)
        self._seen = threading.local()  # the workers share the block's modules

    def run(
        self,
        pool: ThreadPoolExecutor,
        inputs: torch.Tensor,
        gradient: torch.Tensor,
        arguments: Arguments,
        consume: Callable[[list[list[Factors]]], None],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """From the inputs and the gradient of the output to the gradient of the inputs.

        Args:
            pool: where the work is done.
            inputs: of the block.
            gradient: of the loss in the block's output.
            arguments: further arguments of the block.
            consume: takes the factors of every linear layer of some sequences, `[sequence][linear]`, again and again.

        Returns:
            the gradient in the inputs, and in each of the `trained` parameters.
        """
        import torch

        handles = [
            self._block.get_submodule(name).register_forward_hook(partial(self._see, name)) for name in self._names
        ]
        below, trained = [], []
        for start in range(0, len(inputs), SEQUENCES_TOGETHER):
            group = range(start, min(start + SEQUENCES_TOGETHER, len(inputs)))
            results = in_order(pool, lambda s: self._sequence(s, inputs, gradient, arguments), group)
            below += [result[0] for result in results]
            trained += [result[1] for result in results]
            consume([result[2] for result in results])
            del results  # the factors are large: they shall not stay while those of the next group are made
            return_freed_memory()
        for handle in handles:
            handle.remove()
        return torch.cat(below), _sums(trained)

    def _see(self, name: str, _: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self._seen.layers[name] = (inputs[0], output)

    def _sequence(
        self, sequence: int, inputs: torch.Tensor, gradient: torch.Tensor, arguments: Arguments
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[Factors]]:
        """One sequence: gradients of the input and of the trained parameters, and the factors.

        The last two are where the block is.
        """
        import torch

        device = _device(self._block)
        x = inputs[sequence, None].to(device, copy=True).requires_grad_()
        seen = self._seen.layers = {}
        output = self._block(x, **arguments.of(sequence, device))
        outputs = [seen[name][1] for name in self._names]
        below, *gradients = torch.autograd.grad(
            output, [x, *outputs, *self._trained], gradient[sequence, None].to(device)
        )
        by_name = dict(zip(self._names, gradients, strict=False))
        factors = []
        for members in self._members:
            dy = torch.cat([by_name[name][0][:, rows] for name, rows in members], dim=1)
            factors.append((seen[members[0][0]][0][0].detach(), dy))
        return below.cpu(), gradients[len(self._names) :], factors


def add_in_pieces(
    pool: ThreadPoolExecutor,
    sums: list[torch.Tensor],
    factors: list[list[Factors]],
    add: Callable[[torch.Tensor, slice, torch.Tensor, torch.Tensor], None],
) -> None:
    """Add the sequences' shares, in their order, to one sum a linear layer.

    The rows of the sums are worked on in pieces: `add(piece, rows, x, dy)`, or with what else a sequence has two of for
    a layer, adds a sequence's share to `piece`, the given rows of a sum.
    """

    def run(piece: tuple[int, slice]) -> None:
        index, rows = piece
        for of_sequence in factors:
            add(sums[index][rows], rows, *of_sequence[index])

    pieces = [
        (i, slice(row, row + PIECE_ROWS)) for i, total in enumerate(sums) for row in range(0, len(total), PIECE_ROWS)
    ]
    in_order(pool, run, pieces)


def _sums(parts: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Sums over the first index, in its order."""
    totals = [tensor.clone() for tensor in parts[0]]
    for further in parts[1:]:
        for total, tensor in zip(totals, further, strict=True):
            total += tensor
    return totals
