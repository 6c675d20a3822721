"""What an export takes of the memory, step by step, and the resources that fit into a limit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from skim_export.budget import unpacked_parameters
from skim_export.calibration import written_text_bytes
from skim_export.calibration.passes import GROUP
from skim_export.checkpoint import Linear
from skim_export.job import Job
from skim_export.packed import row_bytes
from skim_export.quantize_model import QuantizeOptions
from skim_export.resources import CHUNK_BYTES, ROW_GROUP, WORKING_BYTES, Resources
from skim_runtime.errors import UserError

__all__ = ["peak_memory", "resources_within"]

ALLOCATION_BYTES = 400  # for one row: its errors and the steps of its error curve, sorted
WHOLE_LAYER_BYTES = 32  # for one weight, where a column scale is trained
IN_WORK = 6  # times the activations of a sequence that a thread holds while it goes backwards through them
FREE_LEVELS = 64  # of a row, at most
LATER_BYTES = 300 << 20  # libraries that are loaded later, and freed memory that the allocator keeps
FLOAT = 4
UNKNOWN_RESIDENT = 600 << 20  # what Python and torch take, about


def resources_within(job: Job, max_memory: int) -> Resources:
    """As large pieces of work as so many bytes of memory allow.

    Raises:
        UserError: the smallest pieces do not fit.
    """
    columns = max(linear.in_features for linear in _linears(job))
    smallest = replace(job.resources, chunk_bytes=ROW_GROUP * columns * WORKING_BYTES)
    least = peak_memory(job, smallest)
    if least > max_memory:
        what = " with text that the model writes itself (--calib gives it one)" if _text_is_largest(job) else ""
        raise UserError(
            f"--max-memory {max_memory / 1e9:.2f}GB: too small, this export takes at least {least / 1e9:.2f}GB{what}"
        )
    return replace(smallest, chunk_bytes=min(CHUNK_BYTES, smallest.chunk_bytes + max_memory - least))


def peak_memory(job: Job, resources: Resources) -> int:
    """The most memory that an export has resident, in bytes, its own start included; a careful estimate.

    With a device it is that of the host, which then has less to hold.
    """
    return _resident() + LATER_BYTES + max(_steps(job, resources).values())


def _text_is_largest(job: Job) -> bool:
    steps = _steps(job, job.resources)
    return max(steps, key=steps.__getitem__) == "text"


def _steps(job: Job, resources: Resources) -> dict[str, int]:
    """What each step takes beside what the process has from the start."""
    largest = max(_packed_bytes(linear) for linear in _linears(job))
    floats = FLOAT * unpacked_parameters(job.checkpoint, job.architecture)
    steps = {
        "quantizing": max(_quantizing(linear, resources, job.options) for linear in _linears(job)),
        "writing": floats + 2 * largest,
    }
    if job.options.method.allocation:
        rows = sum(linear.out_features for linear in job.options.budgeted(job.architecture))
        steps["allocation"] = rows * ALLOCATION_BYTES
    if job.calibrates:
        steps["calibration"] = _calibrating(job)
    if job.writes_text and job.resources.device is None:
        steps["text"] = written_text_bytes(job.checkpoint)
    if job.effort.tune:
        steps["tuning"] = _tuning(job)
    return steps


def _linears(job: Job) -> list[Linear]:
    return job.architecture.linears + job.architecture.vocabulary_linears


def _quantizing(linear: Linear, resources: Resources, options: QuantizeOptions) -> int:
    rows, columns = linear.out_features, linear.in_features
    chunk = resources.chunks(rows, columns)[0]
    total: int = (chunk.stop - chunk.start) * columns * WORKING_BYTES + 2 * _packed_bytes(linear)
    if options.method.correlated:
        total += 4 * FLOAT * columns * columns  # the correlation, and what its factor is made of
    if options.method.column_scale:
        total += rows * columns * WHOLE_LAYER_BYTES
    return total


def _packed_bytes(linear: Linear) -> int:
    """At most: at 8 bits."""
    return linear.out_features * row_bytes(8, linear.in_features)


def _calibrating(job: Job) -> int:
    """A block's weights, statistics and activations of a group of sequences; or the head."""
    architecture, (sequences, length) = job.architecture, job.text
    hidden = FLOAT * sequences * length * architecture.hidden_size
    blocks = []
    for block in architecture.blocks:
        weights = FLOAT * sum(linear.out_features * linear.in_features for linear in block)
        moments = [FLOAT * linear.in_features**2 for linear in block]
        channels = sum(linear.out_features + linear.in_features for linear in block)
        seen = FLOAT * length * channels * (min(GROUP, sequences) + IN_WORK * job.resources.workers)
        blocks.append(2 * weights + sum(moments) + max(max(moments), seen))
    head = FLOAT * architecture.vocabulary_size * architecture.hidden_size
    return 3 * hidden + max(*blocks, head if job.options.head_bits is not None else 3 * head)


def _tuning(job: Job) -> int:
    """Codes of all layers, levels with their two moments, full-precision outputs, and one block."""
    architecture = job.architecture
    codes = sum(linear.out_features * linear.in_features for linear in architecture.linears)
    levels = 3 * FLOAT * FREE_LEVELS * sum(linear.out_features for linear in architecture.linears)
    block = max(sum(x.out_features * x.in_features for x in block) for block in architecture.blocks)
    states = 2 * math.prod(job.text) * architecture.hidden_size
    head = architecture.vocabulary_size * architecture.hidden_size
    return codes + levels + FLOAT * (4 * block + states + head)


def _resident() -> int:
    """Resident memory of this process now, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:  # not Linux
        return UNKNOWN_RESIDENT
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
