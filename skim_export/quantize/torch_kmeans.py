"""Weighted k-means of many rows at once, in torch: the dynamic program of `native/row_kmeans.cpp`, whatever the device.

R rows of K weights, sorted and cut into n runs, at whose borders clusters may begin; prefixes are of 0 to n runs. Sums
and gains are float64. Nothing is added by atomics, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from skim_export.quantize.native_library import cluster_floor

__all__ = ["SortedRows", "cluster", "error_curves", "row_bytes", "runs_of"]

_EVEN = 0.1  # part of the places that are spread evenly over the sorted values
_TEMPORARIES = 24  # arrays of 8 bytes a run that the search has in memory


@dataclass(frozen=True)
class SortedRows:
    """Rows of weights as the dynamic program takes them.

    Attributes:
        order: columns in the order of their values, int64 `[R, K]`.
        borders: number of values in each prefix, int64 `[R, n + 1]`, from 0 to K, strictly increasing.
        mass: sum of the weights of each prefix, float64 `[R, n + 1]`, strictly increasing.
        moment: sum of weight * value of each prefix, values taken about the mean, float64 `[R, n + 1]`.
        mean: of the row, float64 `[R]`.
        total: sum of squares about the mean, float64 `[R]`.
        unweighted: whether all weights of the row are 0, bool `[R]`; it is clustered as if they were all 1.
    """

    order: torch.Tensor
    borders: torch.Tensor
    mass: torch.Tensor
    moment: torch.Tensor
    mean: torch.Tensor
    total: torch.Tensor
    unweighted: torch.Tensor

    @classmethod
    def of(
        cls, values: torch.Tensor, weights: torch.Tensor | None, column_scale: torch.Tensor, points: int
    ) -> SortedRows:
        """Sort `values / column_scale`.

        Args:
            values: float32 `[R, K]`.
            weights: of the squared errors of `values`, float32 `[R, K]`; None for all 1.
            column_scale: float32 `[K]`.
            points: places where a cluster may begin, see `runs_of`.
        """
        columns = values.shape[1]
        scaled, order = torch.sort(values / column_scale, dim=1, stable=True)
        scaled = scaled.double()
        mass = torch.ones_like(scaled)
        unweighted = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        mean = scaled.mean(dim=1)
        if weights is not None:
            given = weights.double().mul_(column_scale.double().square()).gather(1, order)
            total = given.sum(dim=1)
            unweighted = total == 0
            mean = torch.where(unweighted, 0, (given * scaled).sum(dim=1) / total)
            floored = torch.maximum(given, cluster_floor() * total[:, None] / columns)
            mass = torch.where(unweighted[:, None], mass, floored)
        scaled -= mean[:, None]
        borders = _borders(scaled, mass, runs_of(columns, points))
        moment = mass * scaled
        total = (moment * scaled).sum(dim=1)
        return cls(order, borders, _prefixes(mass, borders), _prefixes(moment, borders), mean, total, unweighted)

    @property
    def runs(self) -> int:
        """Their number n."""
        return self.mass.shape[1] - 1

    @cached_property
    def scale_of_gains(self) -> torch.Tensor:
        """Brings the gains of each row to 0..1/2, float64 `[R, 1]`."""
        return torch.where(self.total > 0, 0.5 / self.total, 0)[:, None]


def runs_of(columns: int, points: int) -> int:
    """n: `points`, or all columns where there are fewer than twice as many."""
    return columns if columns < 2 * points else points


def row_bytes(columns: int, points: int, clusters: int) -> int:
    """Memory that a row takes, in bytes: `clusters` splits of each prefix are kept."""
    return 8 * (columns * 10 + runs_of(columns, points) * (_TEMPORARIES + clusters))


def _borders(values: torch.Tensor, weights: torch.Tensor, runs: int) -> torch.Tensor:
    """Where runs begin and end, int64 `[R, runs + 1]`, of sorted values and their weights, float64 `[R, K]`.

    Levels of an optimal quantizer are as dense as the cube root of weight * density of the values (Panter and Dite,
    "Quantization distortion in pulse-count modulation with nonuniform spacing of levels", 1951), and so are the
    borders: a gap between neighbouring values stands for 1 / density. Borders at every n-th value would be too far
    apart in the tails, where wide codebooks have levels of their own for few values.
    """
    columns = values.shape[1]
    gaps = torch.nn.functional.pad(values.diff(dim=1), (1, 0))
    share = weights.pow(1 / 3) * gaps.pow(2 / 3)
    even = _EVEN / (1 - _EVEN) * share.mean(dim=1, keepdim=True)
    places = (share + torch.where(even > 0, even, 1)).cumsum(dim=1)
    number = torch.arange(runs + 1, device=values.device)
    wanted = torch.searchsorted(places, places[:, -1:] * (number.double() / runs))
    wanted[:, 0], wanted[:, -1] = 0, columns
    wanted = (wanted - number).cummax(dim=1).values  # at least one value in a run, before and after
    return torch.minimum(wanted, torch.full_like(wanted, columns - runs)) + number


def _prefixes(terms: torch.Tensor, borders: torch.Tensor) -> torch.Tensor:
    """Sums of the first terms, as many as the borders say, `[R, n + 1]`."""
    return torch.nn.functional.pad(terms.cumsum(dim=1), (1, 0)).gather(1, borders)


def error_curves(rows: SortedRows, max_bits: int) -> torch.Tensor:
    """Least weighted squared error with 2, 4, ... 2^max_bits centroids, float64 `[R, max_bits]`."""
    errors: list[torch.Tensor] = []
    for clusters, (gain, _) in enumerate(_steps(rows, 1 << max_bits), start=1):
        if clusters == 2 << len(errors):
            errors.append((rows.total - gain).clamp_(min=0).masked_fill_(rows.unweighted, 0))
    return torch.stack(errors, dim=1)


def cluster(rows: SortedRows, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centroids, float32 `[R, count]`, ascending; the weight that each carries, likewise; codes, uint8 `[R, K]`."""
    end = torch.full_like(rows.order[:, :1], rows.runs)
    borders = [end]
    for splits in reversed([splits for _, splits in _steps(rows, count)]):
        borders.append(splits.gather(1, borders[-1]))
    edges = torch.cat(borders[::-1], dim=1)  # cluster c is of the runs edges[c] to edges[c + 1]
    mass, moment = rows.mass.gather(1, edges).diff(dim=1), rows.moment.gather(1, edges).diff(dim=1)
    centroids = moment / mass + rows.mean[:, None]
    # With fewer runs than centroids the lowest clusters are empty: their centroids repeat the first of the others.
    codes = torch.arange(count, device=mass.device).expand_as(mass)
    empty = (mass == 0).sum(dim=1, keepdim=True)
    centroids = centroids.gather(1, torch.maximum(codes, empty))
    centroids = centroids.cummax(dim=1).values  # rounding can break the order where clusters share a value

    starts = rows.borders.gather(1, edges[:, 1:-1])
    positions = torch.arange(rows.order.shape[1], device=mass.device).expand_as(rows.order)
    by_value = torch.searchsorted(starts, positions.contiguous(), right=True)
    by_column = torch.empty_like(by_value).scatter_(1, rows.order, by_value)
    return centroids.float(), mass.float(), by_column.to(torch.uint8)


def _steps(rows: SortedRows, most: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For 1, 2, ... `most` clusters: the explained sum of squares, and where the last cluster of each prefix begins.

    Those are float64 `[R]` and int64 `[R, n + 1]`; of `most` clusters only the split of the last prefix is right.
    """
    gain = torch.nn.functional.pad(rows.moment[:, 1:].square() / rows.mass[:, 1:], (1, 0))
    yield gain[:, -1], torch.zeros_like(gain, dtype=torch.int64)
    for clusters in range(2, most + 1):
        gain, splits = _one_more(rows, gain, only_last=clusters == most)
        yield gain[:, -1], splits


def _one_more(rows: SortedRows, gain: torch.Tensor, only_last: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """From the gains of every prefix with m clusters to those with m + 1, and their last splits.

    Splits are monotone in the prefix. So the prefixes are taken in the order of a bisection, all of one stride
    together: each is searched for between the splits of its two neighbours already done.
    """
    n = rows.runs
    next_gain, splits = torch.zeros_like(gain), torch.zeros_like(gain, dtype=torch.int64)
    added = (rows.moment[:, -1:] - rows.moment[:, :-1]).square() / (rows.mass[:, -1:] - rows.mass[:, :-1])
    next_gain[:, n], splits[:, n] = (gain[:, :-1] + added).max(dim=1)
    stride = 0 if only_last else 1 << (n - 1).bit_length() >> 1
    while stride:
        ends = slice(stride, n, 2 * stride)
        low = splits[:, 0 : n - stride : 2 * stride]  # of the prefixes one stride before; those after have the next
        last = min(2 * stride * low.shape[1], n)
        next_gain[:, ends], splits[:, ends] = _search(rows, gain, stride, low, splits[:, last : last + 1])
        stride //= 2
    return next_gain, splits


def _search(
    rows: SortedRows, gain: torch.Tensor, stride: int, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best splits of the prefixes stride, 3 stride, 5 stride ...: their gains and they themselves, `[R, S]`.

    The ranges of neighbouring prefixes meet in one split. So all ranges of a row together, laid end to end, have
    n - 1 + S elements at most: element e is of prefix number s and split e - s. Their maxima are read off one running
    maximum, over s + gain with the gains scaled to less than 1.

    Args:
        rows: the rows.
        gain: of every prefix with a cluster less, float64 `[R, n + 1]`.
        stride: of the prefixes.
        low: where the range of each prefix begins, int64 `[R, S]`, ascending; it ends where the next begins.
        high: where the last one ends, int64 `[R, 1]`.
    """
    prefixes = low.shape[1]
    number = torch.arange(prefixes, device=low.device)
    starts = low + number
    elements = torch.arange(rows.runs - 1 + prefixes, device=low.device).expand(len(low), -1)
    of_prefix = torch.searchsorted(starts, elements.contiguous(), right=True) - 1
    split = elements - of_prefix
    end = stride * (2 * of_prefix + 1)
    moment = rows.moment.gather(1, end) - rows.moment.gather(1, split)
    mass = rows.mass.gather(1, end) - rows.mass.gather(1, split)
    found = gain.gather(1, split) + moment.square() / mass
    wrong = (split >= end) | (split > high)
    ranked = torch.where(wrong, -1, of_prefix + found * rows.scale_of_gains)
    stops = torch.cat([starts[:, 1:] - 1, high + number[-1]], dim=1)
    best = ranked.cummax(dim=1).indices.gather(1, stops)
    return found.gather(1, best), split.gather(1, best)
