"""How long contenders take on a GPU, by turns, and how fast its memory can be read."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from cuda_contenders import Contender, Dense
from cuda_device import Device

from skim_runtime.measure.bandwidth import Bandwidth
from skim_runtime.measure.rounds import take_turns as rounds_of
from skim_runtime.progress import Progress

__all__ = ["Row", "read_bandwidth", "take_turns"]

READINGS, REPLAYS = 10, 4  # of several replays, of which only the first one waits for its launch


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        shape: NxK.
        tokens: M.
        contender: name of what was measured.
        nbytes: bytes of the weights, scales and codebooks included.
        copies: layers with weights of their own that take turns.
        error: relative error.
        microseconds: of one layer in a CUDA graph, median over the rounds.
        fastest: the fastest round.
        launched_microseconds: median without a graph, each kernel launched from Python; None if that is not possible.
        teraflops: floating-point operations, 2 M N K a layer, over the time in a graph.
        gigabytes_per_second: of weights.
        bandwidth_share: the same over the measured bandwidth.
        to_cublas: how many times as fast as cuBLAS.
    """

    shape: str
    tokens: int
    contender: str
    nbytes: int
    copies: int
    error: float
    microseconds: float
    fastest: float
    launched_microseconds: float | None
    teraflops: float
    gigabytes_per_second: float
    bandwidth_share: float
    to_cublas: float


def read_bandwidth(device: Device) -> Bandwidth:
    """Bytes per second that the device reads from memory.

    Several of torch's operations, which do next to nothing with what they read, take turns on 16 times what the
    last-level cache holds; the fastest call counts. It is a lower bound of what the memory can do.
    """
    source = torch.ones(16 * device.cache_bytes // 4, device=device.place)
    matrix = source[: len(source) // 1024 * 1024].view(-1, 1024)
    vector = torch.ones(1024, device=device.place)
    target = torch.empty_like(source)
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "torch.sum": (source.nbytes, source.sum),
        "torch.amax": (source.nbytes, source.amax),
        "torch.mv": (matrix.nbytes, lambda: torch.mv(matrix, vector)),
        "copying (reads and writes)": (2 * source.nbytes, lambda: target.copy_(source)),
    }
    found = []
    for name, (nbytes, way) in ways.items():
        replay = device.captured(lambda way=way: _drop(way()))  # type: ignore[misc]
        found += [(REPLAYS * nbytes / device.seconds(replay, REPLAYS), name) for _ in range(READINGS)]
    return Bandwidth(*max(found))


def _drop(_: object) -> None:
    pass


def take_turns(
    contenders: Sequence[Contender],
    shape: tuple[int, int],
    tokens: int,
    device: Device,
    bandwidth: Bandwidth,
    rounds: int,
    seconds: float,
) -> list[Row]:
    """Time all contenders on `tokens` tokens, in rounds of about `seconds` each."""
    calls = [contender.call(tokens) for contender in contenders]
    graphs = [
        device.captured(call) if contender.capturable else call
        for contender, call in zip(contenders, calls, strict=True)
    ]
    counts = []
    for graph in graphs:
        device.seconds(graph, 3)  # what happens at first only, such as a capture of onnxruntime's, is not timed
        counts.append(max(1, math.ceil(seconds / device.seconds(graph, 1))))

    def microseconds(call: Callable[[], None], i: int) -> float:
        return 1e6 * device.seconds(call, counts[i]) / (contenders[i].copies * counts[i])

    measures: dict[tuple[str, int], Callable[[], float]] = {}
    for i, contender in enumerate(contenders):
        measures["captured", i] = partial(microseconds, graphs[i], i)
        if contender.capturable:
            measures["launched", i] = partial(microseconds, calls[i], i)
    found = rounds_of(measures, rounds, Progress())
    captured = [found["captured", i] for i in range(len(contenders))]
    launched = [found.get(("launched", i)) for i in range(len(contenders))]
    medians = [statistics.median(found) for found in captured]
    cublas = next(median for c, median in zip(contenders, medians, strict=True) if isinstance(c, Dense))
    rows, columns = shape
    return [
        Row(
            shape=f"{rows}x{columns}",
            tokens=tokens,
            contender=contender.name,
            nbytes=contender.nbytes,
            copies=contender.copies,
            error=contender.error(tokens),
            microseconds=median,
            fastest=min(captured[i]),
            launched_microseconds=None if (direct := launched[i]) is None else statistics.median(direct),
            teraflops=2 * tokens * rows * columns / median / 1e6,
            gigabytes_per_second=contender.nbytes / median / 1e3,
            bandwidth_share=1e6 * contender.nbytes / median / bandwidth.bytes_per_second,
            to_cublas=cublas / median,
        )
        for i, (contender, median) in enumerate(zip(contenders, medians, strict=True))
    ]
