"""Error feedback and refinement of windows for many rows at once, in torch: `native/lane_search_body.h` on any device.

Terms and shapes are those of `torch_refine`; the rows R are of one kind, with codes of b bits and a memory of m, and
columns stand lane after lane. Levels, float32 `[R, 2^(b + m)]`, are by window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from skim_export.quantize.solver import LANE
from skim_export.quantize.torch_refine import COLUMNS_TOGETHER, fit_levels

__all__ = ["Lanes", "feedback", "feedback_without_coupling", "refine"]

_DEAD = 1e30  # costs more than any path: does not begin where it should


@dataclass(frozen=True)
class Lanes:
    """The trellis of rows of one kind.

    Attributes:
        bits: b.
        memory: m.
        levels: by window, float32 `[2^(b + m), R]`.
    """

    bits: int
    memory: int
    levels: torch.Tensor

    @property
    def states(self) -> int:
        """Of the trellis."""
        return 1 << self.memory

    def chosen(self, windows: torch.Tensor) -> torch.Tensor:
        """The levels of windows `[.., R]`."""
        return self.levels.gather(0, windows)


def _find(lanes: Lanes, target: torch.Tensor, unit: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
    """The windows of a lane that cost least, as far as is found, int64 `[8, R]`.

    Args:
        lanes: the trellis.
        target: float32 `[8, R]`.
        unit: float32 `[8, R]`.
        factor: of the inverse of the lane's coupling, float32 `[8, 8]`, upper triangular; None for columns that do not
            go together.
    """
    states, branches, rows = lanes.states, 1 << lanes.bits, target.shape[1]
    windows = torch.arange(states * branches, device=target.device)
    before = windows & (states - 1)
    start = torch.arange(states, device=target.device)
    cost = torch.where(start[:, None] == start, 0.0, _DEAD)[:, :, None].expand(-1, -1, rows)  # [start, state, R]
    targets = target.expand(states, states, LANE, rows)
    first_window = (start * branches)[None, :, None]
    chosen = []
    for k in range(LANE):
        off = targets[:, before, k] - unit[k] * lanes.levels  # [start, window, R]
        if factor is not None:
            off = off / factor[k, k]
        sums = (cost[:, before] + off.square()).view(states, states, branches, rows)
        cost, branch = sums.min(dim=2)
        window = first_window + branch
        if factor is not None and k + 1 < LANE:
            error = off.gather(1, window)
            source = (window & (states - 1))[:, :, None].expand(-1, -1, LANE, -1)
            targets = targets.gather(1, source) - error[:, :, None] * factor[k][:, None]
        chosen.append(window)
    state = cost[start, start].argmin(dim=0)
    best, found = state, []
    number = torch.arange(rows, device=target.device)
    for window in reversed(chosen):
        found.append(window[best, state, number])
        state = found[-1] & (states - 1)
    return torch.stack(found[::-1])


def _cost(
    lanes: Lanes, target: torch.Tensor, unit: torch.Tensor, factor: torch.Tensor, windows: torch.Tensor
) -> torch.Tensor:
    """What windows `[8, R]` of a lane cost, float32 `[R]`."""
    target, total = target.clone(), torch.zeros_like(target[0])
    difference = unit * lanes.chosen(windows)
    for k in range(LANE):
        error = (target[k] - difference[k]) / factor[k, k]
        total += error.square()
        target[k + 1 :].addr_(factor[k, k + 1 :], error, alpha=-1)
    return total


def feedback_without_coupling(lanes: Lanes, target: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Windows of columns that do not go together, int64 `[K, R]`: all lanes at once, each a row of its own."""
    count, rows = len(target) // LANE, target.shape[1]

    def together(values: torch.Tensor) -> torch.Tensor:
        return values.view(count, LANE, rows).transpose(0, 1).reshape(LANE, count * rows)

    wide = Lanes(lanes.bits, lanes.memory, lanes.levels.repeat(1, count))
    found = _find(wide, together(target), together(unit), None)
    return found.view(LANE, count, rows).transpose(0, 1).reshape(-1, rows)


def feedback(lanes: Lanes, target: torch.Tensor, unit: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Windows by error feedback, int64 `[K, R]`; `factor` `[K, K]` is that of the inverse; targets are overwritten."""
    windows = torch.empty_like(target, dtype=torch.int64)
    for start in range(0, len(target), COLUMNS_TOGETHER):
        block = slice(start, min(start + COLUMNS_TOGETHER, len(target)))
        ours, units, within = target[block], unit[block], factor[block, block]
        errors = torch.empty_like(ours)
        for first in range(0, len(ours), LANE):
            lane = slice(first, first + LANE)
            found = _find(lanes, ours[lane], units[lane], within[lane, lane])
            stored = units[lane] * lanes.chosen(found)
            for k in range(LANE):
                column = first + k
                torch.sub(ours[column], stored[k], out=errors[column]).div_(within[column, column])
                ours[column + 1 :].addr_(within[column, column + 1 :], errors[column], alpha=-1)
            windows[block.start + first : block.start + first + LANE] = found
        target[block.stop :].addmm_(factor[block, block.stop :].T, errors, alpha=-1)
    return windows


def refine(
    lanes: Lanes,
    target: torch.Tensor,
    unit: torch.Tensor,
    correlation: torch.Tensor,
    windows: torch.Tensor,
    *,
    rounds: int,
    sweeps: int,
    fit: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels and windows in turn; the error, the full objective of each row, does not rise.

    Args:
        lanes: the trellis with the levels to begin with.
        target: v, float32 `[K, R]`.
        unit: u, float32 `[K, R]`.
        correlation: float32 `[K, K]`.
        windows: int64 `[K, R]`.
        rounds: alternations between levels and windows.
        sweeps: over the lanes in each round.
        fit: whether the levels may change.

    Returns:
        levels, float32 `[2^(b + m), R]`; windows; error of each row, float64 `[R]`.
    """
    windows = windows.clone()
    pull = correlation @ target if fit else None
    for _ in range(rounds):
        if pull is not None:
            lanes = replace(lanes, levels=_fitted(lanes, unit, correlation, pull, windows))
        residual = correlation @ (target - unit * lanes.chosen(windows))
        for _ in range(sweeps):
            _sweep(lanes, unit, correlation, windows, residual)
    difference = target - unit * lanes.chosen(windows)
    errors = (correlation @ difference).double().mul_(difference).sum(dim=0).clamp_(min=0)
    return lanes.levels, windows, errors


def _fitted(
    lanes: Lanes, unit: torch.Tensor, correlation: torch.Tensor, pull: torch.Tensor, windows: torch.Tensor
) -> torch.Tensor:
    """The best levels for the windows, float32 `[2^(b + m), R]`: those of the lower half, and their negatives."""
    last = len(lanes.levels) - 1
    negative = windows > last // 2
    free = lanes.levels[: last // 2 + 1].T.clone()
    everything = torch.arange(len(free), device=free.device)
    codes = torch.where(negative, last - windows, windows)
    fit_levels(torch.where(negative, -unit, unit), correlation, pull, free, codes, [(free.shape[1], everything)])
    return torch.cat([free, -free.flip(1)], dim=1).T.contiguous()


def _sweep(
    lanes: Lanes, unit: torch.Tensor, correlation: torch.Tensor, windows: torch.Tensor, residual: torch.Tensor
) -> None:
    """New windows for each lane in turn, where they cost less; windows and the residual C (v - u c[w]) are changed."""
    count = len(unit) // LANE
    own = correlation.view(count, LANE, count, LANE).diagonal(dim1=0, dim2=2).permute(2, 0, 1).double()
    inverses = torch.linalg.inv(own)
    factors = torch.linalg.cholesky(inverses, upper=True).to(unit.dtype)
    inverses = inverses.to(unit.dtype)
    for start in range(0, len(unit), COLUMNS_TOGETHER):
        block = slice(start, min(start + COLUMNS_TOGETHER, len(unit)))
        ours, units, within = residual[block].clone(), unit[block], correlation[block, block]
        moves = torch.empty_like(ours)
        for first in range(0, len(ours), LANE):
            lane, number = slice(first, first + LANE), (start + first) // LANE
            place = slice(start + first, start + first + LANE)
            now = windows[place]
            was = units[lane] * lanes.chosen(now)
            target = was + inverses[number] @ ours[lane]
            found = _find(lanes, target, units[lane], factors[number])
            costs = (_cost(lanes, target, units[lane], factors[number], some) for some in (found, now))
            found = torch.where(torch.lt(*costs), found, now)
            torch.sub(was, units[lane] * lanes.chosen(found), out=moves[lane])
            ours.addmm_(within[:, lane], moves[lane])
            windows[place] = found
        residual.addmm_(correlation[:, block], moves)
