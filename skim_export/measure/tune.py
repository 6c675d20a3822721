"""Finding the fastest schedules of a machine: one number after the other is changed, and kept if that is faster."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from skim_export.bundle.kernels.compile import Kernel
from skim_export.bundle.schedule import Override, Prefill, Schedule, Tile
from skim_export.measure.running.layers import Layers, random_layer
from skim_export.measure.running.machine import Library, Machine, OnMachine
from skim_export.measure.sessions import MANY_TOKENS, activations, cold_layers
from skim_export.packed import LevelKind, RowClass
from skim_runtime.progress import Progress

__all__ = ["ROLES", "Finding", "overrides", "tune"]

ROUNDS = 5
KERNEL_SECONDS = 0.02  # of one kernel in a round
GAIN = 1.02  # what a change must be faster by: less is noise
PASSES = 4  # through all numbers of a role, while something changes
NEAR = 2  # places in the list of a number's values that a change may be away
MOST_SUMS = 32  # rows times tokens of a tile; no CPU has registers for more
CHECKED = (37, 4832)  # rows and columns that candidates are checked on: multiples of little, and more than a tile has
CHECKED_TOKENS = (1, 2, 5, 19)
CROSSOVERS = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128]  # tokens; the first are a batch, the others a prefill
LONGEST_BATCH = 256
VECTORS = [1, 2, 4, 8, 16, 32]
COUNTS = [1, 2, 3, 4, 6, 8]
AHEAD = [0, 1024, 2048, 4096, 8192]


@dataclass(frozen=True)
class Role:
    """A way to multiply, and the numbers of its schedule.

    Attributes:
        tokens: how many it is timed with.
        values: what each number may be, in the order in which they are tuned.
    """

    tokens: tuple[int, ...]
    values: dict[str, list[int]]


ROLES = {
    "decode": Role((1,), {"rows": COUNTS, "lanes": VECTORS[2:], "vector": VECTORS, "ahead": AHEAD}),
    "batch": Role((4, 8), {"vector": VECTORS, "rows": COUNTS, "tokens": COUNTS, "lanes": VECTORS[2:], "ahead": AHEAD}),
    "prefill": Role(
        (32,),
        {
            "vector": VECTORS,
            "rows": COUNTS,
            "tokens": COUNTS,
            "columns": [256, 512, 1024, 2048, 4096],
            "lanes": VECTORS[2:],
        },
    ),
}
SMALLEST = Schedule(Tile(1, 4, 4, 1), Tile(1, 4, 4, 1), Prefill(1, 256, 4, 4, 1, LONGEST_BATCH + 1))


@dataclass(frozen=True)
class Finding:
    """The schedule found for the rows of a class.

    Attributes:
        row_class: of the rows.
        integer: the arithmetic.
        schedule: the fastest.
        seconds: of one layer by role and number of tokens, before tuning and after; summed up over the shapes.
        weights: of the layers.
        nbytes: of these weights.
    """

    row_class: RowClass
    integer: bool
    schedule: Schedule
    seconds: dict[tuple[str, int], tuple[float, float]]
    weights: int
    nbytes: int


def tune(
    machine: Machine,
    products: Sequence[tuple[RowClass, bool]],
    shapes: Sequence[tuple[int, int]],
    cold: int,
    progress: Progress,
) -> Iterator[Finding]:
    """Find the schedules of some row classes and arithmetics, one by one.

    The first begins with the target's schedule, the others with the first one's.

    Args:
        machine: where kernels are timed.
        products: row classes and whether the arithmetic is that of integers.
        shapes: rows and columns of the layers that are timed.
        cold: bytes of layers that are multiplied one after the other, more than caches hold.
        progress: told about each number that is tuned.

    Raises:
        RuntimeError: a kernel computes something wrong.
    """
    first: Schedule | None = None
    for row_class, integer in products:
        start = first or machine.target.schedule_for(row_class, integer, *shapes[0])
        tuner = _Tuner(machine, row_class, integer, shapes, cold, progress)
        finding = tuner.find(start)
        first = first or finding.schedule
        yield finding


class _Tuner:
    """One row class in one arithmetic."""

    def __init__(
        self,
        machine: Machine,
        row_class: RowClass,
        integer: bool,
        shapes: Sequence[tuple[int, int]],
        cold: int,
        progress: Progress,
    ) -> None:
        self._machine, self._row_class, self._integer, self._progress = machine, row_class, integer, progress
        self._layers = [self._put(rows, columns, cold) for rows, columns in shapes]
        self._ragged = self._put(*CHECKED, 0)
        self.name = f"{row_class.name}{' integer' if integer else ''}"

    def _put(self, rows: int, columns: int, cold: int) -> OnMachine:
        layers = cold_layers(lambda random, n, k: random_layer(random, self._row_class, n, k), rows, columns, cold)
        return self._machine.put(Layers.of(layers, self._row_class))

    def find(self, start: Schedule) -> Finding:
        """Tune all roles."""
        best, seconds = start, {}
        for name in ROLES:
            before = best
            best = self._descend(name, best)
            for tokens in ROLES[name].tokens:
                pair = self._compared(name, before, [best], [tokens])[0]
                seconds[name, tokens] = pair if best != before else (min(pair), min(pair))
        best = self._with_crossover(best)
        layers = [on.layers for on in self._layers]
        return Finding(
            row_class=self._row_class,
            integer=self._integer,
            schedule=best,
            seconds=seconds,
            weights=sum(one.N * one.K for one in layers),
            nbytes=sum(one.tensors["codes"].nbytes // one.count for one in layers),
        )

    def _descend(self, name: str, best: Schedule) -> Schedule:
        """The schedule with the numbers of one role tuned, one after the other."""
        role, unchanged = ROLES[name], 0
        self._progress.start(f"{self.name} {name}", PASSES * len(role.values))
        for field, values in PASSES * list(role.values.items()):
            faster = self._fastest(name, best, list(_alternatives(best, name, field, values)), role.tokens)
            unchanged = unchanged + 1 if faster == best else 1
            best = faster
            self._progress.step(f"{field} {getattr(getattr(best, name), field)}")
            if unchanged == len(role.values):
                break
        self._progress.finish()
        return best

    def _fastest(self, name: str, best: Schedule, alternatives: Sequence[Schedule], tokens: Sequence[int]) -> Schedule:
        """The fastest alternative if it is faster than the best one until now."""
        if not alternatives:
            return best
        gains = [before / after for before, after in self._compared(name, best, alternatives, tokens)]
        fastest = alternatives[int(np.argmax(gains))]
        if max(gains) <= GAIN:
            return best
        # The fastest of many may only have been lucky.
        ((before, after),) = self._compared(name, best, [fastest], tokens)
        return fastest if before / after > GAIN else best

    def _with_crossover(self, best: Schedule) -> Schedule:
        """With the least number of tokens from which on a prefill is the faster way."""
        least = LONGEST_BATCH
        for tokens in reversed(CROSSOVERS):
            batch, prefill = (_only(name, best) for name in ("batch", "prefill"))
            ((before, after),) = self._times(batch, [prefill], [tokens])
            if after > before:
                break
            least = tokens
        return replace(best, prefill=replace(best.prefill, least_tokens=least))

    def _compared(
        self, name: str, best: Schedule, alternatives: Sequence[Schedule], tokens: Sequence[int]
    ) -> list[tuple[float, float]]:
        return self._times(_only(name, best), [_only(name, other) for other in alternatives], tokens)

    def _times(self, best: Schedule, others: Sequence[Schedule], tokens: Sequence[int]) -> list[tuple[float, float]]:
        """Seconds of the best schedule and of each other one, in turn.

        The gain is their ratio: both are medians over rounds, and geometric means over numbers of tokens; seconds of
        the shapes are added up.
        """
        kernels = [Kernel(self._row_class, self._integer, schedule) for schedule in (best, *others)]
        library = self._machine.load(kernels)
        self._check(library, kernels)
        found = []
        for other in kernels[1:]:
            pair = []
            for kernel_times in zip(*(self._round(library, kernels[0], other, m) for m in tokens), strict=True):
                pair.append(statistics.geometric_mean(kernel_times))
            found.append((pair[0], pair[1]))
        return found

    def _round(self, library: Library, best: Kernel, other: Kernel, tokens: int) -> tuple[float, float]:
        """Medians of the seconds of two kernels."""
        inputs = [(on, activations(tokens, on.layers.K)) for on in self._layers]
        cold = tokens < MANY_TOKENS
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for kernel, seconds in zip((best, other), times, strict=True):
                seconds.append(sum(library.seconds(kernel, on, x, KERNEL_SECONDS, cold=cold) for on, x in inputs))
        return statistics.median(times[0]), statistics.median(times[1])

    def _check(self, library: Library, kernels: Sequence[Kernel]) -> None:
        for kernel in kernels:
            for tokens in CHECKED_TOKENS:
                x = activations(tokens, self._ragged.layers.K)
                self._ragged.layers.check(
                    f"{self.name}, {kernel.schedule}", self._integer, x, library.run(kernel, self._ragged, x)
                )


def _only(name: str, schedule: Schedule) -> Schedule:
    """A role of a schedule, the others as small as can be: they would only be compiled."""
    only = replace(SMALLEST, **{name: getattr(schedule, name)})
    return replace(only, prefill=replace(only.prefill, least_tokens=2 if name == "prefill" else LONGEST_BATCH + 1))


def _alternatives(schedule: Schedule, name: str, field: str, values: Sequence[int]) -> Iterator[Schedule]:
    """The schedule with other values of one number; a vector is no longer than the lanes that are decoded."""
    tile = getattr(schedule, name)
    place = sum(value < getattr(tile, field) for value in values)
    for value in values[max(0, place - NEAR) : place + NEAR + 1]:
        other = replace(tile, **{field: value})
        if other.vector > other.lanes and name != "prefill":
            other = replace(other, vector=other.lanes) if field == "lanes" else replace(other, lanes=other.vector)
        if other != tile and other.rows * other.tokens <= MOST_SUMS:
            yield replace(schedule, **{name: other})


def overrides(findings: Sequence[Finding]) -> tuple[Schedule, tuple[Override, ...]]:
    """What was found as a schedule and its overrides: the schedule is the first finding's."""
    base, found = findings[0].schedule, []
    for integer in (False, True):
        same = [finding for finding in findings if finding.integer == integer]
        arithmetic = {"arithmetic": "integer" if integer else "float"}
        common = same[0].schedule if same else base
        if changes := _changes(base, common):
            found.append(Override(arithmetic, changes))
        for kind in LevelKind:
            for changes, bits in _grouped([f for f in same if f.row_class.kind == kind], common):
                found.append(Override(arithmetic | {"kind": kind.name.lower(), "bits": bits}, changes))
    return base, tuple(found)


def _grouped(findings: Sequence[Finding], common: Schedule) -> list[tuple[dict[str, dict[str, int]], list[int]]]:
    """Changes of roles against a schedule, and the widths that share them."""
    groups: list[tuple[dict[str, dict[str, int]], list[int]]] = []
    for finding in sorted(findings, key=lambda finding: finding.row_class):
        for role, numbers in _changes(common, finding.schedule).items():
            changes = {role: numbers}
            bits = next((bits for known, bits in groups if known == changes), None)
            if bits is None:
                groups.append((changes, bits := []))
            bits.append(finding.row_class.bits)
    return groups


def _changes(old: Schedule, new: Schedule) -> dict[str, dict[str, int]]:
    """The numbers that differ, by role."""
    found = {}
    for role in fields(Schedule):
        before, after = getattr(old, role.name), getattr(new, role.name)
        numbers = {f.name: value for f in fields(after) if (value := getattr(after, f.name)) != getattr(before, f.name)}
        if numbers:
            found[role.name] = numbers
    return found
