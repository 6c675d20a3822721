"""Error feedback and refinement of many rows at once, in torch: those of `native/row_refine_body.h`, on any device.

The error of a row is v - u c[q]: target v = sqrt(s) w and unit u = sqrt(s) a, for weights w, their sensitivities s, the
column scale a, levels c and codes q. Arrays over weights are `[K, R]`, so that a column of R rows is contiguous. The
levels of a row, float32 `[R, L]`, are ascending and end in infinities where it has fewer than L.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from skim_export.quantize.native_library import refine_floor, refine_ridge

__all__ = ["COLUMNS_TOGETHER", "feedback", "fit_levels", "inverse_factor", "refine", "scaled_rows"]

COLUMNS_TOGETHER = 128  # that are taken one by one; what they change in the others is one product
_FIT_BYTES = 1 << 28  # memory for the products that levels are fitted from
_FIT_WORKING_BYTES = 32  # for one weight and one level: one-hot codes and products, float32 and float64


def scaled_rows(
    values: torch.Tensor, weights: torch.Tensor | None, column_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets and units, float32 `[K, R]`, of weights and their sensitivities, float32 `[R, K]`."""
    if weights is None:
        root = torch.ones_like(values)
    else:
        weights = weights.double()
        mean = weights.mean(dim=1, keepdim=True)
        # A weight counts at least a little: codes of columns that never were active stay near them.
        root = torch.maximum(weights, torch.where(mean > 0, refine_floor() * mean, 1)).sqrt_().float()
    return (root * values).T.contiguous(), (root * column_scale).T.contiguous()


def feedback(target: torch.Tensor, unit: torch.Tensor, factor: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Codes by error feedback, int64 `[K, R]`; `factor`, `[K, K]`, is that of the inverse; targets are overwritten."""
    codes = torch.empty_like(target, dtype=torch.int64)
    middles = _middles(levels)
    inverse = factor.diagonal().reciprocal()
    for start in range(0, len(target), COLUMNS_TOGETHER):
        block = slice(start, min(start + COLUMNS_TOGETHER, len(target)))
        ours, errors = target[block], torch.empty_like(target[block])
        columns = _columns(ours, unit[block], errors, codes[block])
        rows = zip(factor[block, block].unbind(), errors.unbind(), inverse[block].unbind(), strict=True)
        for k, ((mine, units, error, code), (weights, error_row, by)) in enumerate(zip(columns, rows, strict=True)):
            torch.searchsorted(middles, mine / units, out=code)
            torch.addcmul(mine, levels.gather(1, code), units, value=-1, out=error).mul_(by)
            ours[k + 1 :].addr_(weights[k + 1 :], error_row, alpha=-1)
        target[block.stop :].addmm_(factor[block, block.stop :].T, errors, alpha=-1)
    return codes


def refine(
    target: torch.Tensor,
    unit: torch.Tensor,
    correlation: torch.Tensor,
    levels: torch.Tensor,
    codes: torch.Tensor,
    *,
    widths: Sequence[tuple[int, torch.Tensor]],
    rounds: int,
    sweeps: int,
    fit: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels and codes in turn; the error, the full objective of each row, does not rise.

    Args:
        target: v, float32 `[K, R]`.
        unit: u, float32 `[K, R]`.
        correlation: float32 `[K, K]`.
        levels: float32 `[R, L]`.
        codes: int64 `[K, R]`.
        widths: every number of levels that rows have, and the rows that have it, int64.
        rounds: alternations between levels and codes.
        sweeps: over the codes, at most, in each round.
        fit: whether the levels may change.

    Returns:
        levels; codes; error of each row, float64 `[R]`.
    """
    levels, codes = levels.clone(), codes.clone()
    pull = correlation @ target if fit else None
    for _ in range(rounds):
        if pull is not None:
            fit_levels(unit, correlation, pull, levels, codes, widths)
            levels, codes = _sorted(levels, codes)
        residual = correlation @ (target - unit * _chosen(levels, codes))
        for left in reversed(range(sweeps)):
            before = codes.clone()
            _sweep(unit, correlation, levels, codes, residual)
            if left and torch.equal(before, codes):  # waits for the device
                break
    difference = target - unit * _chosen(levels, codes)
    errors = (correlation @ difference).double().mul_(difference).sum(dim=0).clamp_(min=0)
    return levels, codes, errors


def inverse_factor(correlation: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the inverse, `[K, K]`."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(correlation))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _columns(*blocks: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Column by column that of each block `[.., R]`, as `[R, 1]`.

    The views are made all at once: to make them one by one would take as long as what a GPU does with them.
    """
    return zip(*(block[:, :, None].unbind() for block in blocks), strict=True)


def _middles(levels: torch.Tensor) -> torch.Tensor:
    """Between neighbouring levels, float32 `[R, L - 1]`: the code of the nearest level is the number of them below."""
    return 0.5 * (levels[:, :-1] + levels[:, 1:])


def _chosen(levels: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """c[q], float32 `[K, R]`."""
    return levels.T.gather(0, codes)


def fit_levels(
    unit: torch.Tensor,
    correlation: torch.Tensor,
    pull: torch.Tensor,
    levels: torch.Tensor,
    codes: torch.Tensor,
    widths: Sequence[tuple[int, torch.Tensor]],
) -> None:
    """Replace the levels by the best ones for the codes, not sorted. `pull` is C v, float32 `[K, R]`."""
    for count, rows in widths:
        for part in torch.split(rows, max(1, _FIT_BYTES // (_FIT_WORKING_BYTES * count * len(unit)))):
            levels[part, :count] = _best_levels(
                unit[:, part].T, correlation, pull[:, part].T, levels[part, :count], codes[:, part].T
            )


def _best_levels(
    unit: torch.Tensor, correlation: torch.Tensor, pull: torch.Tensor, levels: torch.Tensor, codes: torch.Tensor
) -> torch.Tensor:
    """`(P^T C P)^-1 P^T C v` for the one-hot codes P times u, float32 `[r, count]`; arrays over weights are `[r, K]`.

    Rows whose system is singular keep their levels.
    """
    count, columns = levels.shape[1], unit.shape[1]
    numbers = torch.arange(count, device=codes.device)
    one_hot = ((codes[:, None] == numbers[:, None]) * unit[:, None]).contiguous()  # [r, count, K]
    products = (one_hot.view(-1, columns) @ correlation).view_as(one_hot).double()
    one_hot = one_hot.double()
    system = products @ one_hot.transpose(1, 2)
    right = one_hot @ pull.double()[:, :, None]
    diagonal = system.diagonal(dim1=1, dim2=2)
    ridge = refine_ridge() * diagonal.mean(dim=1, keepdim=True)
    diagonal += ridge
    right += (ridge * levels)[:, :, None]
    factor, failed = torch.linalg.cholesky_ex(system)
    best = torch.cholesky_solve(right, factor)[:, :, 0].float()
    return torch.where(failed[:, None] == 0, best, levels)


def _sorted(levels: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels in ascending order, and the codes renamed; those of equal levels keep their order."""
    levels, order = torch.sort(levels, dim=1, stable=True)
    numbers = torch.arange(levels.shape[1], device=order.device).expand_as(order)
    renamed = torch.empty_like(order).scatter_(1, order, numbers)
    return levels, renamed.T.gather(0, codes)


def _sweep(
    unit: torch.Tensor, correlation: torch.Tensor, levels: torch.Tensor, codes: torch.Tensor, residual: torch.Tensor
) -> None:
    """One round of coordinate descent, in which codes and the residual C (v - u c[q]), `[K, R]`, are changed."""
    middles = _middles(levels)
    chosen = _chosen(levels, codes)
    for start in range(0, len(unit), COLUMNS_TOGETHER):
        block = slice(start, min(start + COLUMNS_TOGETHER, len(unit)))
        ours, units, within = residual[block].clone(), unit[block], correlation[block, block]
        steps = (within.diagonal()[:, None] * units).reciprocal_()
        moves = torch.empty_like(ours)
        columns = _columns(ours, units, steps, chosen[block], moves, codes[block])
        rows = zip(within.unbind(), moves.unbind(), strict=True)
        for k, ((mine, by, step, was, move, code), (weights, move_row)) in enumerate(zip(columns, rows, strict=True)):
            torch.searchsorted(middles, torch.addcmul(was, mine, step), out=code)
            torch.mul(was - levels.gather(1, code), by, out=move)
            ours[k + 1 :].addr_(weights[k + 1 :], move_row)
        residual.addmm_(correlation[:, block], moves)
