"""Forward and backward passes through one decoder block at a time.

Activations and gradients are float32 `[S, T, hidden]` for S sequences of T tokens, on the CPU; what a sequence needs is
brought to where the block's weights are. The sequences are shared out over
the workers of a pool; sums over them are taken in their order, so that results do not depend on the number of workers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from skim_export.checkpoint import Linear, Member
from skim_export.work.heap import return_freed_memory
from skim_export.work.resources import ROW_GROUP

from .arguments import Arguments
from .workers import in_order

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["BlockBackward", "Factors", "OfSequence", "add_in_pieces", "forward", "head_gradient", "head_values"]

Loss: TypeAlias = "Callable[[torch.Tensor, int, slice], torch.Tensor]"  # of logits [m, V], a sequence, its positions

# Fixed: they decide the order of summation, and with it the last bits of the results.
HEAD_TOKENS = 128  # tokens whose logits are in memory at once
PIECE_ROWS = ROW_GROUP  # of one piece of work

SEQUENCES_TOGETHER = 8  # whose activations and gradients are in memory at once


@dataclass(frozen=True)
class Factors:
    """Two factors of what a sequence adds to some rows of a sum: x and dL/dy, if nothing else is said.

    A linear layer has one of them a sequence, one of experts has one for each expert that the sequence uses.

    Attributes:
        x: `[T, K]`, for the T tokens that reach these rows.
        y: `[T, rows]`, or what else there is for each token.
        rows: which.
    """

    x: torch.Tensor
    y: torch.Tensor
    rows: slice

    def of(self, rows: slice) -> torch.Tensor:
        """The columns of y that are for some of the rows."""
        return self.y[:, rows.start - self.rows.start : rows.stop - self.rows.start]


OfSequence: TypeAlias = "list[list[Factors]]"  # by linear layer


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
        self._linears = linears
        self._prefix = f"{prefix}."
        paths = [self._path(member) for linear in linears for member in linear.members]
        self._names = list(dict.fromkeys(paths))
        self._block = block
        self._trained = list(trained)
        self._seen = threading.local()  # the workers share the block's modules

    def run(
        self,
        pool: ThreadPoolExecutor,
        inputs: torch.Tensor,
        gradient: torch.Tensor,
        arguments: Arguments,
        consume: Callable[[list[OfSequence]], None],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """From the inputs and the gradient of the output to the gradient of the inputs.

        Args:
            pool: where the work is done.
            inputs: of the block.
            gradient: of the loss in the block's output.
            arguments: further arguments of the block.
            consume: takes the factors of every linear layer of some sequences, again and again.

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
    ) -> tuple[torch.Tensor, list[torch.Tensor], OfSequence]:
        """One sequence: gradients of the input and of the trained parameters, and the factors.

        The last two are where the block is.
        """
        import torch

        device = _device(self._block)
        x = inputs[sequence, None].to(device, copy=True).requires_grad_()
        seen = self._seen.layers = {}
        output = self._block(x, **arguments.of(sequence, device))
        names = [name for name in self._names if name in seen]  # experts that no token has are not called
        outputs = [seen[name][1] for name in names]
        below, *gradients = torch.autograd.grad(
            output, [x, *outputs, *self._trained], gradient[sequence, None].to(device)
        )
        by_name = {
            name: (seen[name][0].detach().flatten(0, -2), dy.flatten(0, -2))
            for name, dy in zip(names, gradients, strict=False)
        }
        factors = [self._factors(linear, by_name) for linear in self._linears]
        return below.cpu(), gradients[len(names) :], factors

    def _path(self, member: Member) -> str:
        """Of a member in its block."""
        return member.module.removeprefix(self._prefix)

    def _factors(self, linear: Linear, by_name: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> list[Factors]:
        """The factors of a linear layer, from the inputs of its modules and the gradients in their outputs."""
        import torch

        if linear.of_experts:
            places = [(by_name.get(self._path(member)), rows) for member, rows in linear.places()]
            return [Factors(*found, rows) for found, rows in places if found is not None]
        found = [(*by_name[self._path(member)], member.rows) for member in linear.members]
        dy = torch.cat([dy[:, rows] for _, dy, rows in found], dim=1)
        return [Factors(found[0][0], dy, slice(0, linear.out_features))]


def add_in_pieces(
    pool: ThreadPoolExecutor,
    sums: list[torch.Tensor],
    factors: list[OfSequence],
    add: Callable[[torch.Tensor, slice, Factors], None],
) -> None:
    """Add the sequences' shares, in their order, to one sum a linear layer.

    The rows of the sums are worked on in pieces: `add(total, rows, factors)` adds a sequence's share to some rows of a
    sum; they are among those of the factors.
    """

    def run(piece: tuple[int, slice]) -> None:
        index, rows = piece
        for of_sequence in factors:
            for part in of_sequence[index]:
                common = slice(max(rows.start, part.rows.start), min(rows.stop, part.rows.stop))
                if common.start < common.stop:
                    add(sums[index], common, part)

    pieces = [
        (i, slice(row, min(row + PIECE_ROWS, len(total))))
        for i, total in enumerate(sums)
        for row in range(0, len(total), PIECE_ROWS)
    ]
    in_order(pool, run, pieces)


def _sums(parts: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Sums over the first index, in its order."""
    totals = [tensor.clone() for tensor in parts[0]]
    for further in parts[1:]:
        for total, tensor in zip(totals, further, strict=True):
            total += tensor
    return totals
