"""What an export will take, said before it starts: time, memory and disk.

Times come from small pieces of the very work, measured on this machine now; sizes follow from the shapes, and both can
be told of a model of which there are only shapes.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from skim_export.calibration.calibrate_model import activation_bytes
from skim_export.calibration.passes import BlockBackward, OfSequence, forward
from skim_export.calibration.sums import LinearSums
from skim_export.calibration.text import WRITTEN_TOGETHER
from skim_export.calibration.workers import workers
from skim_export.checkpoint import Linear
from skim_export.pipeline.budget import ROW_CLASS_BYTES, graph_bytes, other_bytes, widths_around
from skim_export.pipeline.job import Job
from skim_export.pipeline.memory import peak_memory
from skim_export.pipeline.quantize_linear import CheckpointLinear
from skim_export.quantize import ONE_WIDTH, Columns, Method, even_bits
from skim_export.tuning.training import EPOCHS, EVERY, HELD_OUT
from skim_export.work.device import synchronize
from skim_export.work.files import fsync
from skim_export.work.heap import return_freed_memory
from skim_export.work.resources import FLOAT32_BYTES, ROW_GROUP
from skim_export.work.tasks import SerialExecutor

if TYPE_CHECKING:
    import torch

__all__ = ["Cost", "Sizes", "estimate_cost", "estimate_sizes"]

PROBED_ROWS = 64  # for each thread
PROBED_DEVICE_ROWS = 2048  # on a device, where fewer rows take as long
PROBED_FACTOR = 1024  # columns of the matrix that is factored; the time grows with their cube
PROBED_FILE = 16 << 20  # bytes
STATISTICS_BYTES = 2  # of a weight's Fisher information, and of a correlation
STATES = 3  # a tuned level and its two moments


@dataclass(frozen=True)
class Sizes:
    """What an export will take of memory and disk.

    Attributes:
        memory: peak of resident memory, bytes.
        memory_given_text: the same if the model is given a calibration text and writes none.
        disk: bytes on the disk at the most, the output included.
        output: bytes of the output.
    """

    memory: int
    memory_given_text: int
    disk: int
    output: int


@dataclass(frozen=True)
class Cost:
    """What an export will take.

    Attributes:
        seconds: time of every step, by name.
        sizes: memory and disk.
    """

    seconds: dict[str, float]
    sizes: Sizes


def estimate_cost(job: Job) -> Cost:
    """Measure small pieces of an export, and tell what all of it takes; what an earlier run has done is not counted."""
    sizes = estimate_sizes(job)  # before this process grows with what follows
    seconds = _disk_seconds(job, sizes.output)
    seconds |= _text_seconds(job) if job.calibrates else {}
    seconds["quantizing"] = _quantizing_seconds(job) / job.executor.tasks_at_once
    return_freed_memory()
    return Cost(seconds, sizes)


def estimate_sizes(job: Job) -> Sizes:
    """The part of an estimate that follows from the shapes."""
    output = _output_bytes(job)
    packed = output - _other_bytes(job)
    disk = 2 * output + _statistics_bytes(job) + _tuning_bytes(job, packed)
    return Sizes(peak_memory(job), peak_memory(job, given_text=True), disk, output)


def _linear_weights(job: Job) -> int:
    return sum(linear.out_features * linear.in_features for linear in job.budgeted)


def _other_bytes(job: Job) -> int:
    rest = other_bytes(job.model, job.options, job.quantizing)
    return rest + graph_bytes(job.model.architecture, widths_around(job.budget.bits), job.method)


def _output_bytes(job: Job) -> int:
    stored = job.budget.bits * _linear_weights(job) / 8
    if not job.budget.stored:
        free, codebook, levels = job.free_rows, job.options.codebook, job.method.levels
        for linear in job.budgeted:
            widths = np.where(free.mask(linear), math.ceil(free.average), job.quantizing.given(linear))
            for width, rows in zip(*np.unique(widths, return_counts=True), strict=True):
                of_row = levels.level_bytes(int(width), linear.in_features, codebook)
                stored += int(rows) * (of_row + ROW_CLASS_BYTES)
    return int(stored) + _other_bytes(job)


def _statistics_bytes(job: Job) -> int:
    """Calibration statistics, and activations between blocks."""
    if not job.calibrates:
        return 0
    linears = job.model.architecture.linears
    entries = sum(x.out_features * (x.in_features + ROW_GROUP) + x.in_features**2 for x in linears)
    statistics = entries * STATISTICS_BYTES
    activations = activation_bytes(job.model, job.text.shape)
    return statistics + activations * (1 if isinstance(job.executor, SerialExecutor) else 2)  # gradients of all blocks


def _tuning_bytes(job: Job, packed: int) -> int:
    """The tuned layers beside the others, the state of tuning, and a byte a weight while it lasts."""
    if not job.effort.tune:
        return 0
    bits, linears = math.ceil(job.budget.bits), job.model.architecture.linears
    levels = 1 << (bits + max(job.method.levels.memory(bits, linear.in_features) for linear in linears))
    rows = sum(linear.out_features for linear in linears)
    windows = sum(linear.out_features * linear.in_features for linear in linears)
    return packed + windows + FLOAT32_BYTES * STATES * levels * rows


def _disk_seconds(job: Job, output: int) -> dict[str, float]:
    """Hashing the model; writing the packed layers and then the model, each hashed."""
    content = os.urandom(PROBED_FILE)
    hashing = _seconds(lambda: hashlib.sha256(content).digest())
    writing = 0.0
    with (
        contextlib.suppress(OSError),  # a full disk may become empty; a place that cannot be written to is found later
        tempfile.TemporaryDirectory(dir=_existing(job.output.parent.resolve())) as directory,
    ):
        path = Path(directory) / "probe"
        writing = _seconds(lambda: path.write_bytes(content)) + _seconds(lambda: fsync(path))
    model = job.model.checkpoint.file_bytes
    return {
        "hashing the model": model / PROBED_FILE * hashing,
        "writing": output / PROBED_FILE * 2 * (writing + hashing),
    }


def _existing(directory: Path) -> Path:
    while not directory.is_dir():
        directory = directory.parent
    return directory


def _quantizing_seconds(job: Job) -> float:
    """All linears, from some rows of one of each width; workers are taken to be as fast as this machine."""
    method, bits = job.method, min(8, job.budget.bits)
    total = 0.0
    by_columns: dict[int, list[Linear]] = {}
    for linear in job.budgeted:
        by_columns.setdefault(linear.in_features, []).append(linear)
    for columns, linears in by_columns.items():
        total += _rows_seconds(job, linears[0], method, bits, sum(linear.out_features for linear in linears))
        total += _coupling_seconds(job, linears[0], columns) * len(linears)
    for linear, widths in job.quantizing.apart(job.model.architecture).items():
        total += _rows_seconds(job, linear, ONE_WIDTH, int(widths[0]), linear.out_features)
    return total


def _rows_seconds(job: Job, linear: Linear, method: Method, bits: float, rows: int) -> float:
    """So many rows, from the first rows of a linear, all weights alike and columns that do not go together."""
    resources = job.executor.resources
    most = PROBED_ROWS * resources.threads if resources.device is None else PROBED_DEVICE_ROWS
    probed = min(most, linear.out_features)
    data = _probed(job, linear, method, probed, linear.in_features)
    widths, row_bits = widths_around(bits), even_bits(probed, bits)

    def quantize() -> None:
        if method.allocation:
            method.width_errors(data, widths, resources)
        columns = Columns(method.scale(data, row_bits, resources), method.no_coupling(linear.in_features))
        method.quantize_rows(data, slice(0, probed), row_bits, columns, job.options.codebook, resources).pack()

    return _seconds(quantize) / probed * rows


def _coupling_seconds(job: Job, linear: Linear, columns: int) -> float:
    """How the columns of a linear go together, from fewer of them."""
    method, size = job.method, min(columns, PROBED_FACTOR)
    data = _probed(job, linear, method, 1, size)
    return _seconds(lambda: method.coupling(data, job.executor.resources)) * (columns / size) ** 3


def _probed(job: Job, linear: Linear, method: Method, rows: int, columns: int) -> CheckpointLinear:
    """The first rows of a linear with statistics that take as long as any."""
    part = replace(linear, out_features=rows, in_features=columns)
    return CheckpointLinear(job.model.checkpoint, part, _AllAlike(columns), method)


@dataclass(frozen=True)
class _AllAlike:
    """Statistics of inputs and gradients that are all alike, see `Statistics`."""

    columns: int

    def fisher(self, rows: slice) -> npt.NDArray[np.float32]:
        return np.ones((rows.stop - rows.start, self.columns), np.float32)

    def input_square(self) -> npt.NDArray[np.float32]:
        return np.ones(self.columns, np.float32)

    def correlation(self) -> npt.NDArray[np.float32]:
        return np.eye(self.columns, dtype=np.float32)

    def output_correlation(self, rows: slice) -> npt.NDArray[np.float32]:
        alone: npt.NDArray[np.float32] = np.eye(ROW_GROUP, dtype=np.float32)[
            np.arange(rows.start, rows.stop) % ROW_GROUP
        ]
        return alone


def _text_seconds(job: Job) -> dict[str, float]:
    """Calibration, writing its text, and tuning, from one sequence in one block."""
    sequences, length = job.text.shape
    blocks, at_once = len(job.model.architecture.blocks), job.resources.workers
    one = _BlockTimes(job, length, job.resources.device)
    calibrated = sequences - (HELD_OUT if job.effort.tune else 0)
    if isinstance(job.executor, SerialExecutor):
        share = math.ceil(calibrated / at_once)
        calibration = 2 * one.load + share * (one.forward + one.backward + one.sums)
    else:
        spread = calibrated / (job.executor.tasks_at_once * job.executor.resources.workers)
        calibration = 3 * one.load + spread * (one.forward + 2 * one.backward + one.sums)
    found = {"calibration": blocks * calibration}
    if job.writes_text:
        groups = math.ceil(math.ceil(sequences / WRITTEN_TOGETHER) / at_once)
        found["writing text"] = blocks * (one.load + groups * length * one.token)
    if job.effort.tune:  # on the CPU
        one = one if job.resources.device is None else _BlockTimes(job, length, None)
        seen = EPOCHS * calibrated * (one.forward + one.backward + one.sums / 2)  # no second moments there
        looked_at = (EPOCHS * calibrated / (4 * EVERY) + 2) * HELD_OUT * one.forward
        found["tuning"] = blocks * (seen + looked_at) / job.resources.threads
    return found


class _BlockTimes:
    """Seconds that the largest block takes on a device, or on one thread of the CPU if that is None.

    Attributes:
        load: to read it.
        forward: for a sequence.
        backward: for a sequence, forwards once more included.
        sums: for the statistics of a sequence.
        token: for a further token of each of `WRITTEN_TOGETHER` sequences.
    """

    def __init__(self, job: Job, length: int, device: torch.device | None) -> None:
        import torch

        from skim_export.calibration.streaming import StreamedModel

        architecture = job.model.architecture
        streamed = StreamedModel(job.model, device)
        hidden, arguments = streamed.enter(torch.zeros(1, length, dtype=torch.int64))
        tokens, token_arguments = streamed.enter(torch.zeros(WRITTEN_TOGETHER, 1, dtype=torch.int64))
        largest = max(range(len(architecture.blocks)), key=lambda index: _weights(architecture.blocks[index]))
        linears, module = architecture.blocks[largest], architecture.block_modules[largest]
        hidden, tokens = (_padded(states, streamed.width(largest)) for states in (hidden, tokens))
        self.load = _seconds(lambda: streamed.load_block(largest), device)
        block = streamed.module(module)
        with workers(1) as pool:
            self.forward = _seconds(lambda: forward(pool, block, hidden, arguments[largest]))
            sums = LinearSums(pool, linears, device)
            backward = BlockBackward(linears, module, block)
            factors: list[list[OfSequence]] = []
            gradient = _padded(hidden, streamed.width(largest + 1))
            self.backward = _seconds(lambda: backward.run(pool, hidden, gradient, arguments[largest], factors.append))
            self.sums = _seconds(lambda: sums.add(factors[0]), device)
            self.token = _seconds(lambda: forward(pool, block, tokens, token_arguments[largest]))
        streamed.unload_block(largest)


def _padded(states: torch.Tensor, width: int) -> torch.Tensor:
    """States with so many channels."""
    import torch

    return torch.nn.functional.pad(states, (0, width - states.shape[-1]))


def _weights(linears: list[Linear]) -> int:
    return sum(linear.out_features * linear.in_features for linear in linears)


def _seconds(work: Callable[[], object], device: torch.device | None = None) -> float:
    """The shorter of two times, until the device is done: the first use of anything takes longer."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)
