"""Statistics of embedding and head, whose rows are the tokens of the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from skim_export.checkpoint import Architecture, Linear

from .passes import HEAD_TOKENS, Factors, add_in_pieces
from .sums import LinearStatistics, add_fisher, add_moments, statistics_of, token_weight

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .streaming import Head

__all__ = ["embedding_fisher", "head_statistics", "vocabulary_statistics"]

_UNSEEN = 0.1  # part of the mean sensitivity that every token has at least: the text is a sample


def head_statistics(
    pool: ThreadPoolExecutor, norm: nn.Module, head: Head, hidden: torch.Tensor, tokens: torch.Tensor
) -> LinearStatistics:
    """Statistics of the head as a linear layer.

    Args:
        pool: where the work is done.
        norm: the norm in front of the head.
        head: the head.
        hidden: what the norm sees, float32 `[S, T, hidden]`.
        tokens: int64 `[S, T]`.
    """
    import torch

    weight = head.linear.weight.detach()
    vocabulary, columns = weight.shape
    fisher, moments = weight.new_zeros(vocabulary, columns), weight.new_zeros(columns, columns)
    square = weight.new_zeros(columns)
    with torch.no_grad():
        for sequence, labels in zip(hidden, tokens[:, 1:], strict=True):
            for start in range(0, len(labels), HEAD_TOKENS):
                rows = slice(start, min(start + HEAD_TOKENS, len(labels)))
                x = norm(sequence[rows].to(weight.device))
                dy = pool.submit(_output_gradient, head, x, labels[rows].to(weight.device)).result()
                add_in_pieces(pool, [fisher], [[[Factors(x, dy, slice(0, vocabulary))]]], add_fisher)
                add_in_pieces(pool, [moments], [[[Factors(x, token_weight(dy), slice(0, columns))]]], add_moments)
                square += x.square().sum(dim=0)
    return statistics_of(fisher, square, moments, predicted=tokens[:, 1:].numel())


def _output_gradient(head: Head, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Gradient of the summed loss in the outputs of the head's linear layer `[m, V]`."""
    import torch

    outputs: list[torch.Tensor] = []
    handle = head.linear.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.enable_grad():
        logits = head(x.detach().requires_grad_())
    handle.remove()
    gradient: torch.Tensor = torch.softmax(logits.detach(), dim=-1)
    gradient[torch.arange(len(labels), device=labels.device), labels] -= 1
    (output,) = outputs
    (below,) = torch.autograd.grad(logits, output, gradient)
    return below[0]


def embedding_fisher(
    tokens: torch.Tensor, gradient: torch.Tensor, vocabulary: int, scale: float
) -> npt.NDArray[np.float32]:
    """Fisher information of the embedding, float32 `[vocabulary, hidden]`.

    Args:
        tokens: int64 `[S, T]`.
        gradient: of the loss in the first block's input, float32 `[S, T, hidden]`.
        vocabulary: number of tokens.
        scale: what rows of the embedding are multiplied by on their way to the first block.
    """
    import torch

    fisher = torch.zeros(vocabulary, gradient.shape[-1])
    fisher.index_add_(0, tokens.flatten(), gradient.flatten(0, 1).square())
    result: npt.NDArray[np.float32] = fisher.mul_(scale**2).div_(tokens[:, 1:].numel()).numpy()
    return result


def vocabulary_statistics(
    architecture: Architecture, head: LinearStatistics, embedding: npt.NDArray[np.float32]
) -> Iterator[tuple[Linear, LinearStatistics]]:
    """The statistics of embedding and head, or of the one matrix that is both."""
    if architecture.tied:
        found = {architecture.embedding: replace(head, fisher=head.fisher + embedding)}
    else:
        columns = architecture.hidden_size
        alone = LinearStatistics(embedding, np.ones(columns, np.float32), np.eye(columns, dtype=np.float32))
        found = {architecture.embedding: alone, architecture.head: head}
    for linear in architecture.token_linears:
        statistics = found[linear.name]
        smoothed = statistics.fisher + np.float32(_UNSEEN) * statistics.fisher.mean(axis=0)
        yield linear, replace(statistics, fisher=smoothed)
