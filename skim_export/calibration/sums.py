"""What calibration tells of a linear layer: how much the loss minds an error in each weight, and errors together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from skim_export.checkpoint import Linear
from skim_export.work.resources import ROW_GROUP
from skim_runtime.errors import UserError

from .passes import Factors, OfSequence, add_in_pieces
from .workers import in_order

if TYPE_CHECKING:
    import torch

__all__ = ["LinearStatistics", "LinearSums", "add_fisher", "add_moments", "statistics_of", "token_weight"]


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
        output_correlation: float32 `[N, ROW_GROUP]`, how the gradients of the outputs of a block of ROW_GROUP rows go
            together: R[n, m] = sum_t dL/dy[t, n] * dL/dy[t, n0 + m] / w_t, with n0 the first row of n's block, brought
            to 1 where n is n0 + m; 0 behind the last row. None where it is not wanted: of a vocabulary.
        expert_tokens: int64 `[experts]`, the tokens that each expert was given; None of a layer without experts. What
            few tokens tell of an expert is filled up with what the others of its layer have in common: `fisher` has the
            mean of 16 tokens more, and correlations of outputs are nearer to 0. Inputs that every expert has for
            itself have no correlation.
    """

    fisher: npt.NDArray[np.float32]
    input_square: npt.NDArray[np.float32]
    correlation: npt.NDArray[np.float32]
    output_correlation: npt.NDArray[np.float32] | None = None
    expert_tokens: npt.NDArray[np.int64] | None = None


_FURTHER_TOKENS = 16  # of an expert, see `_smooth`
_LEAST = 1e-30  # of a token's weight: a token without a gradient has no part in any sum


class LinearSums:
    """What is summed over the tokens for the linear layers of a block; the sums are on a device, None for the CPU."""

    def __init__(self, pool: ThreadPoolExecutor, linears: list[Linear], device: torch.device | None = None) -> None:
        import torch

        self._pool = pool
        self._linears = linears
        self._fisher = [torch.zeros(linear.out_features, linear.in_features, device=device) for linear in linears]
        self._square = [torch.zeros(linear.in_features, device=device) for linear in linears]
        self._moments = [torch.zeros(linear.in_features, linear.in_features, device=device) for linear in linears]
        self._outputs = [torch.zeros(linear.out_features, ROW_GROUP, device=device) for linear in linears]
        self._seen = [torch.zeros(linear.out_features) for linear in linears]  # tokens that reached each row

    def add(self, factors: list[OfSequence]) -> None:
        """Add some sequences."""
        add_in_pieces(self._pool, self._fisher, factors, add_fisher)
        weights = in_order(self._pool, _token_weights, factors)
        moments = _each(factors, weights, lambda part, weight: Factors(part.x, weight, slice(0, part.x.shape[1])))
        outputs = _each(factors, weights, lambda part, weight: Factors(weight, part.y, part.rows))
        add_in_pieces(self._pool, self._moments, moments, add_moments)
        add_in_pieces(self._pool, self._outputs, outputs, _add_outputs)
        for of_sequence in factors:
            for total, seen, parts in zip(self._square, self._seen, of_sequence, strict=True):
                for part in parts:
                    total += part.x.square().sum(dim=0)
                    seen[part.rows] += len(part.x)

    def statistics(self, predicted: int) -> Iterator[LinearStatistics]:
        """The statistics of the layers after all sequences, with so many predicted tokens; the sums go with them."""
        import torch

        for linear, fisher in zip(self._linears, self._fisher, strict=True):
            if not torch.isfinite(fisher).all():
                raise UserError(
                    f"the gradient of {linear.name} on the calibration text is not finite: weights out of range"
                )
        for linear in self._linears:
            fisher, square, moments = self._fisher.pop(0), self._square.pop(0), self._moments.pop(0)
            outputs, seen = _correlation_in_blocks(self._outputs.pop(0)), self._seen.pop(0)
            of_experts = None
            if linear.of_experts:
                _smooth(fisher, seen.to(fisher.device))
                _shrink(outputs, seen.to(fisher.device))
                of_experts = seen[[rows.start for _, rows in linear.places()]].long().numpy()
            if linear.inputs_differ:
                moments = torch.eye(linear.in_features, device=fisher.device)
            found = statistics_of(fisher, square, moments, predicted)
            yield replace(found, output_correlation=outputs.cpu().numpy(), expert_tokens=of_experts)


def _smooth(fisher: torch.Tensor, seen: torch.Tensor) -> None:
    """Give every expert some tokens more, of the mean sensitivity of a column for those that were seen, in place.

    An expert that the text has not reached is then as sensitive as one that it reached seldom, and one of many tokens
    is what they say.

    Args:
        fisher: sums over tokens `[N, K]`.
        seen: tokens that reached each row, `[N]`.
    """
    mean = fisher.sum(dim=0) / seen.sum().clamp(min=1)
    fisher += _FURTHER_TOKENS * mean


def _shrink(outputs: torch.Tensor, seen: torch.Tensor) -> None:
    """Bring correlations of outputs nearer to 0 where few tokens tell of them, in place, but for the 1 of a row itself.

    Args:
        outputs: `[N, ROW_GROUP]`.
        seen: tokens that reached each row, `[N]`.
    """
    import torch

    rows = torch.arange(len(outputs), device=outputs.device)
    outputs *= (seen / (seen + ROW_GROUP))[:, None]
    outputs[rows, rows % ROW_GROUP] = 1


def _each(
    factors: list[OfSequence],
    weights: list[list[list[torch.Tensor]]],
    make: Callable[[Factors, torch.Tensor], Factors],
) -> list[OfSequence]:
    """Other factors, made of these and the weights of their tokens."""
    return [
        [[make(part, weight) for part, weight in zip(*parts, strict=True)] for parts in zip(*of_sequence, strict=True)]
        for of_sequence in zip(factors, weights, strict=True)
    ]


def _token_weights(of_sequence: OfSequence) -> list[list[torch.Tensor]]:
    return [[token_weight(part.y) for part in parts] for parts in of_sequence]


def statistics_of(
    fisher: torch.Tensor, square: torch.Tensor, moments: torch.Tensor, predicted: int
) -> LinearStatistics:
    """The statistics from their sums, which are overwritten, over so many predicted tokens."""
    return LinearStatistics(
        fisher.div_(predicted).cpu().numpy(), square.div_(predicted).cpu().numpy(), _correlation(moments).cpu().numpy()
    )


def add_fisher(fisher: torch.Tensor, rows: slice, factors: Factors) -> None:
    """Add a sequence to some rows of the Fisher information."""
    fisher[rows].addmm_(factors.of(rows).square().T, factors.x.square())


def add_moments(moments: torch.Tensor, rows: slice, factors: Factors) -> None:
    """Add a sequence, x and the weights of its tokens, to some rows of the moments of x, up to the diagonal."""
    x, weight = factors.x, factors.y
    moments[rows, : rows.stop].addmm_((weight * x[:, rows]).T, x[:, : rows.stop])


def _add_outputs(outputs: torch.Tensor, rows: slice, factors: Factors) -> None:
    """Add a sequence, the weights of its tokens and dL/dy, to some rows of one block of the moments of dL/dy."""
    weight, dy = factors.x, factors.of(rows)
    first = rows.start % ROW_GROUP
    outputs[rows, first : first + dy.shape[1]].addmm_((dy / weight.clamp(min=_LEAST)).T, dy)


def token_weight(dy: torch.Tensor) -> torch.Tensor:
    """The root mean square of each token's gradient, `[T, 1]`."""
    return dy.square().mean(dim=1, keepdim=True).sqrt()


def _correlation_in_blocks(moments: torch.Tensor) -> torch.Tensor:
    """Second moments of blocks of rows, brought to 1 on their diagonals, in place."""
    for start in range(0, len(moments), ROW_GROUP):
        block = moments[start : start + ROW_GROUP]
        _normalize(block[:, : len(block)])
    return moments


def _correlation(moments: torch.Tensor) -> torch.Tensor:
    """Weighted second moments, of which the lower triangle is read, brought to 1 on the diagonal, in place."""
    return _normalize(moments.tril_().add_(moments.tril(-1).T))


def _normalize(moments: torch.Tensor) -> torch.Tensor:
    """Bring a square matrix to 1 on its diagonal, in place; 0 elsewhere in rows and columns that are 0 there."""
    inverse = moments.diagonal().rsqrt()
    inverse[~inverse.isfinite()] = 0
    return moments.mul_(inverse).mul_(inverse[:, None]).fill_diagonal_(1)
