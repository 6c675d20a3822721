"""Milliseconds of a bundle's kernels, on this machine beside the operators in onnxruntime and numpy, or on a board.

All contenders on this machine take turns and multiply the same layers; medians over the rounds are what counts. For
few tokens the layers together are larger than the caches, and are multiplied one after the other, as a decoder does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from skim_export.bundle.kernels.compile import Kernel
from skim_export.measure.random_layers import RandomLayer
from skim_export.measure.running.layers import Layers, random_layer
from skim_export.measure.running.machine import Machine
from skim_export.measure.sessions import MANY_TOKENS, Contender, LayerSession, activations, cold_layers
from skim_export.packed import RowClass
from skim_runtime.library import library_path
from skim_runtime.measure.rounds import mean_seconds, take_turns
from skim_runtime.operators import INTEGER_ACCURACY
from skim_runtime.progress import Progress

__all__ = ["Row", "Settings", "measure_kernels"]

PAUSE = 0.03  # seconds after which threads of a contender have stopped spinning
LEVELS = {False: 0, True: INTEGER_ACCURACY}  # accuracy_level of the operator with the same arithmetic


@dataclass(frozen=True)
class Row:
    """A kernel's times.

    Attributes:
        shape: NxK.
        tokens: M.
        threads: that were used.
        rows: class of all rows.
        arithmetic: "float" or "integer".
        copies: layers with weights of their own.
        nbytes: of the weights of one layer.
        error: relative error against numpy.
        milliseconds: of one layer, median over the rounds, its tokens' preparation included.
        fastest: the fastest round.
        gigaweights_per_second: weights that are multiplied with all tokens.
        gigabytes_per_second: of weights.
        gigaflops: multiplications and additions, in 10^9 a second.
        operator_milliseconds: of the operator in onnxruntime with the same weights and arithmetic.
        to_operator: how many times as fast as that.
        numpy_milliseconds: of numpy's product with the weights as float32.
        to_numpy: how many times as fast as that.
    """

    shape: str
    tokens: int
    threads: int
    rows: str
    arithmetic: str
    copies: int
    nbytes: int
    error: float
    milliseconds: float
    fastest: float
    gigaweights_per_second: float
    gigabytes_per_second: float
    gigaflops: float
    operator_milliseconds: float | None
    to_operator: float | None
    numpy_milliseconds: float | None
    to_numpy: float | None


@dataclass(frozen=True)
class Settings:
    """How long and with what to measure.

    Attributes:
        rounds: medians are over so many.
        seconds: of one contender in a round.
        cold: bytes of layers that are multiplied in turn.
        beside: whether to measure onnxruntime and numpy, too.
    """

    rounds: int
    seconds: float
    cold: int
    beside: bool


def measure_kernels(
    machine: Machine,
    shape: tuple[int, int],
    classes: Sequence[RowClass],
    tokens: Sequence[int],
    settings: Settings,
    progress: Progress,
) -> Iterator[Row]:
    """Time the kernels of some row classes in both arithmetics.

    Raises:
        RuntimeError: one of them computes something wrong.
    """
    progress.start(f"{shape[0]}x{shape[1]}", len(classes))
    dense = {few: _dense(shape, settings.cold if few else 1) for few in (True, False)} if settings.beside else {}
    for row_class in classes:
        for few in (True, False):
            counts = [m for m in tokens if (m < MANY_TOKENS) == few]
            if counts:
                layers = cold_layers(partial(_layer, row_class), *shape, settings.cold if few else 1)
                contest = _Contest(machine, row_class, shape, layers, dense.get(few))
                for m in counts:
                    yield from contest.rows(m, settings)
        progress.step(row_class.name)
    progress.finish()


def _layer(row_class: RowClass, random: np.random.Generator, rows: int, columns: int) -> RandomLayer:
    return random_layer(random, row_class, rows, columns)


def _dense(shape: tuple[int, int], cold: int) -> list[npt.NDArray[np.float32]]:
    """Weights as float32, as many matrices as take `cold` bytes."""
    count = max(1, -(-cold // (4 * shape[0] * shape[1])))
    return [np.random.default_rng(i).standard_normal(shape, np.float32) for i in range(count)]


class _Contest:
    """All contenders with the same layers."""

    def __init__(
        self,
        machine: Machine,
        row_class: RowClass,
        shape: tuple[int, int],
        layers: Sequence[RandomLayer],
        dense: list[npt.NDArray[np.float32]] | None,
    ) -> None:
        self._machine, self._row_class, self._shape, self._dense = machine, row_class, shape, dense
        self._nbytes, self._copies = layers[0].nbytes, len(layers)
        self._on = machine.put(Layers.of(layers, row_class))
        schedules = {integer: machine.target.schedule_for(row_class, integer, *shape) for integer in LEVELS}
        self._kernels = {integer: Kernel(row_class, integer, schedule) for integer, schedule in schedules.items()}
        self._library = machine.load(self._kernels.values())
        self._operators = {}
        if dense is not None:
            for integer, level in LEVELS.items():
                contender = Contender("LutMatMul", level, partial(_layer, row_class))
                session = LayerSession(contender, layers, shape, machine.threads, library_path())
                self._operators[integer] = session

    def rows(self, tokens: int, settings: Settings) -> Iterator[Row]:
        """What so many tokens take."""
        N, K = self._shape
        x = activations(tokens, K)
        errors = {integer: self._error(integer, x) for integer in LEVELS}
        contenders = self._contenders(x, settings.seconds)
        times = take_turns(contenders, settings.rounds, Progress(), pause=PAUSE)
        medians = {key: statistics.median(found) for key, found in times.items()}
        for integer, error in errors.items():
            seconds = medians["kernel", integer]
            operator, dense = medians.get(("operator", integer)), medians.get(("numpy", False))
            yield Row(
                shape=f"{N}x{K}",
                tokens=tokens,
                threads=self._machine.threads,
                rows=self._row_class.name,
                arithmetic="integer" if integer else "float",
                copies=self._copies,
                nbytes=self._nbytes,
                error=error,
                milliseconds=1e3 * seconds,
                fastest=1e3 * min(times["kernel", integer]),
                gigaweights_per_second=N * K / seconds / 1e9,
                gigabytes_per_second=self._nbytes / seconds / 1e9,
                gigaflops=2 * tokens * N * K / seconds / 1e9,
                operator_milliseconds=None if operator is None else 1e3 * operator,
                to_operator=None if operator is None else operator / seconds,
                numpy_milliseconds=None if dense is None else 1e3 * dense,
                to_numpy=None if dense is None else dense / seconds,
            )

    def _error(self, integer: bool, x: npt.NDArray[np.float32]) -> float:
        kernel = self._kernels[integer]
        y = self._library.run(kernel, self._on, x)
        return self._on.layers.check(f"{self._machine.target.name}, {self._row_class.name}", integer, x, y)

    def _contenders(self, x: npt.NDArray[np.float32], least: float) -> dict[tuple[str, bool], Callable[[], float]]:
        """Each measures the seconds of one layer."""
        found: dict[tuple[str, bool], Callable[[], float]] = {}
        for integer, kernel in self._kernels.items():
            found["kernel", integer] = partial(self._library.seconds, kernel, self._on, x, least)
        for integer, session in self._operators.items():
            found["operator", integer] = partial(_mean, session.call(len(x)), least, session.copies)
        if dense := self._dense:
            y = np.empty((len(x), self._shape[0]), np.float32)

            def call() -> None:
                for weights in dense:
                    np.matmul(x, weights.T, out=y)

            found["numpy", False] = partial(_mean, call, least, len(dense))
        return found


def _mean(call: Callable[[], None], least: float, layers: int) -> float:
    return mean_seconds(call, least) / layers
