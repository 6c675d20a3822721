"""Slow, plain references for the solver."""

import itertools

import numpy as np


def weighted_error(values, weights):
    """Weighted squared error of one cluster about its weighted mean."""
    total = weights.sum()
    if total == 0:
        return 0.0
    return float((weights * (values - (weights * values).sum() / total) ** 2).sum())


def brute_force_error(values, weights, clusters):
    """The least error over all cuts of the sorted values into `clusters` runs."""
    order = np.argsort(values, kind="stable")
    values, weights = values[order].astype(np.float64), weights[order].astype(np.float64)
    best = np.inf
    for cuts in itertools.combinations_with_replacement(range(len(values) + 1), clusters - 1):
        edges = [0, *cuts, len(values)]
        runs = [slice(a, b) for a, b in itertools.pairwise(edges) if b > a]
        best = min(best, sum(weighted_error(values[run], weights[run]) for run in runs))
    return best


def program_errors(values, weights, clusters):
    """The least error with 1, 2, ... `clusters` clusters, by the textbook dynamic program in O(clusters K^2)."""
    order = np.argsort(values, kind="stable")
    values, weights = values[order].astype(np.float64), weights[order].astype(np.float64)
    n = len(values)
    mass, moment, square = (
        np.concatenate([[0.0], np.cumsum(x)]) for x in (weights, weights * values, weights * values**2)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = mass[None] - mass[:, None]
        cost = square[None] - square[:, None] - (moment[None] - moment[:, None]) ** 2 / spread
    cost = np.where(np.arange(n + 1)[:, None] < np.arange(n + 1)[None], cost, np.inf)  # [start, end]
    np.fill_diagonal(cost, 0)
    best = cost[0]
    errors = [best[n]]
    for _ in range(clusters - 1):
        best = (best[:, None] + cost).min(axis=0)
        errors.append(best[n])
    return np.array(errors)


def full_error(layer, correlation, levels, codes):
    """d^T S^1/2 C S^1/2 d of every row."""
    stored = np.take_along_axis(levels.astype(np.float64), codes.astype(np.int64), axis=1) * layer.column_scale
    scaled = np.sqrt(layer.weights.astype(np.float64)) * (layer.values - stored)
    return np.einsum("nj,jk,nk->n", scaled, correlation.astype(np.float64), scaled)


def feed_back_row(values, weights, scale, correlation, levels):
    """Codes of a row by error feedback as the paper derives it: after each column, the optimal change of all others."""
    root = np.sqrt(weights.astype(np.float64))
    hessian = root[:, None] * correlation.astype(np.float64) * root
    rest = values.astype(np.float64).copy()
    codes = np.zeros(values.size, np.int64)
    for k in range(values.size):
        codes[k] = np.argmin(np.abs(rest[k] / scale[k] - levels))
        error = rest[k] - levels[codes[k]] * scale[k]
        inverse = np.linalg.inv(hessian[k:, k:])
        rest[k:] -= error / inverse[0, 0] * inverse[0]
    return codes


def best_levels(values, weights, scale, correlation, codes, count):
    """Levels of a row with the least full error for these codes, by least squares; nan where no code is."""
    root = np.sqrt(weights.astype(np.float64))
    factor = np.linalg.cholesky(correlation.astype(np.float64)).T * root
    used = np.unique(codes)
    design = np.zeros((values.size, used.size))
    design[np.arange(values.size), np.searchsorted(used, codes)] = scale
    levels = np.full(count, np.nan)
    levels[used] = np.linalg.lstsq(factor @ design, factor @ values.astype(np.float64), rcond=None)[0]
    return levels


def stretched_row(values, weights, scale):
    """A row as refinement takes it, v = S^1/2 w and u = S^1/2 a, in single precision."""
    weights = weights.astype(np.float64)
    root = np.sqrt(np.maximum(weights, 1e-6 * weights.mean())).astype(np.float32)
    return root * values, root * scale


def nearest_level(levels, value):
    """Index of the nearest of ascending levels: the number of midpoints below."""
    return int((value > np.float32(0.5) * (levels[:-1] + levels[1:])).sum())


def feed_back_in_single_precision(target, unit, factor, levels):
    """Codes of a stretched row by error feedback, one column after the other."""
    target = target.copy()
    codes = np.zeros(target.size, np.uint8)
    for k in range(target.size):
        codes[k] = nearest_level(levels, target[k] / unit[k])
        error = (target[k] - levels[codes[k]] * unit[k]) / factor[k, k]
        target[k + 1 :] += -error * factor[k, k + 1 :]
    return codes


def descend_in_single_precision(target, unit, correlation, levels, codes, sweeps):
    """Codes of a stretched row by coordinate descent, one column after the other."""
    codes = codes.copy()
    residual = np.zeros_like(target)
    products = np.zeros((levels.size, target.size), np.float32)
    for k in range(target.size):
        residual += target[k] * correlation[k]
        products[codes[k]] += unit[k] * correlation[k]
    for level, product in zip(levels, products, strict=True):
        residual += -level * product
    for _ in range(sweeps):
        for k in range(target.size):
            level = levels[codes[k]]
            code = nearest_level(levels, level + residual[k] / (correlation[k, k] * unit[k]))
            residual += (level - levels[code]) * unit[k] * correlation[k]
            codes[k] = code
    return codes
