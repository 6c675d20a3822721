"""The optimizer (Adam, arXiv 1412.6980), for parameters that change in pieces and are kept in files."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["Adam"]

_DECAY = (0.9, 0.95)  # of the means of gradients and of their squares: runs are short
_EPSILON = 1e-12


class Adam:
    """Running means of the gradient of one tensor, and of its square."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.mean, self.square = torch.zeros(shape), torch.zeros(shape)
        self.steps = 0

    def direction(self, gradient: torch.Tensor) -> torch.Tensor:
        """Take in a gradient; the direction to go against, its entries about 1 or less."""
        self.steps += 1
        self.mean.lerp_(gradient, 1 - _DECAY[0])
        self.square.lerp_(gradient.square(), 1 - _DECAY[1])
        mean = self.mean / (1 - _DECAY[0] ** self.steps)
        root = (self.square / (1 - _DECAY[1] ** self.steps)).sqrt_()
        return mean / (root + _EPSILON)
