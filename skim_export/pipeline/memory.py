"""What an export takes of the memory, step by step, and the size of pieces that fits into a limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from skim_export.calibration import written_text_bytes
from skim_export.calibration.calibrate_model import calibrating_bytes
from skim_export.calibration.passes import HEAD_TOKENS
from skim_export.checkpoint import Linear
from skim_export.pipeline.budget import rotary_values, unpacked_parameters
from skim_export.pipeline.check import CHECKED_UNASKED, checking_bytes
from skim_export.pipeline.job import Job
from skim_export.pipeline.quantize_linear import packed_bytes, working_bytes
from skim_export.quantize import MOST_FREE_LEVELS, ONE_WIDTH
from skim_export.tuning import HELD_OUT
from skim_export.work.resources import FLOAT32_BYTES, ROW_GROUP, WORKING_BYTES
from skim_runtime.errors import UserError

__all__ = ["is_checked", "peak_memory", "within_memory"]

ALLOCATION_BYTES = 400  # for one row: its errors and the steps of its error curve, sorted
TABLE_COPIES = 4  # of the rotary tables, while the model builder computes them
LOGITS = 6  # those of both models, their logarithms, and what the gradient takes
TEXT = "text"  # the step in which a model writes its calibration text
LATER_BYTES = 300 << 20  # libraries that are loaded later, and freed memory that the allocator keeps
UNKNOWN_RESIDENT = 600 << 20  # what Python and torch take, about


def within_memory(job: Job, max_memory: int) -> Job:
    """The same export, in as large pieces of work as so many bytes of memory allow.

    Raises:
        UserError: the smallest pieces do not fit.
    """
    resources = job.executor.resources
    columns = max(linear.in_features for linear in _linears(job))
    smallest = ROW_GROUP * columns * WORKING_BYTES
    job = _in_pieces(job, smallest)
    least = peak_memory(job)
    if least > max_memory:
        raise UserError(
            f"--max-memory {max_memory / 1e9:.2f}GB: too small, this export takes at least {least / 1e9:.2f}GB"
            f"{_hint(job)}"
        )
    return _in_pieces(job, min(resources.chunk_bytes, smallest + max_memory - least))


def peak_memory(job: Job, *, given_text: bool = False) -> int:
    """The most memory that an export has resident, in bytes, its own start included; a careful estimate.

    With a device it is that of the host, which then has less to hold.

    Args:
        job: the export.
        given_text: tell what it would be if the model was given a calibration text and wrote none.
    """
    steps = _steps(job)
    return _resident() + LATER_BYTES + max(steps[name] for name in steps if not (given_text and name == TEXT))


def is_checked(job: Job) -> bool:
    """Whether what is written is compared with transformers: if asked for, or if it takes little time and memory."""
    if job.options.check is not None:
        return job.options.check
    if job.options.activation_type == "bfloat16":  # the CPU has none
        return False
    most, need = job.options.max_memory, _resident() + LATER_BYTES + checking_bytes(job.model)
    return job.model.checkpoint.parameter_count <= CHECKED_UNASKED and (most is None or need <= most)


def _in_pieces(job: Job, chunk_bytes: int) -> Job:
    resources = replace(job.executor.resources, chunk_bytes=chunk_bytes)
    return replace(job, executor=job.executor.using(resources))


def _hint(job: Job) -> str:
    """What makes the largest step smaller."""
    steps = _steps(job)
    largest = max(steps, key=steps.__getitem__)
    if largest == TEXT:
        return " with text that the model writes itself (--calib gives it one)"
    if largest == "writing" and _tables(job) > steps["writing"] // 2:
        return " with rotary tables for all positions of the model (--context gives it fewer)"
    return ""


def _tables(job: Job) -> int:
    return TABLE_COPIES * FLOAT32_BYTES * rotary_values(job.model, job.options.context)


def _steps(job: Job) -> dict[str, int]:
    """What each step takes beside what the process has from the start."""
    largest = 2 * max(packed_bytes(linear) for linear in _linears(job))
    excluded = job.model.architecture.excluded_linears
    transposed = 2 * FLOAT32_BYTES * max((x.out_features * x.in_features for x in excluded), default=0)
    floats = FLOAT32_BYTES * unpacked_parameters(job.model)
    steps = {
        "quantizing": _quantizing(job),
        "writing": floats + max(largest, transposed) + _tables(job),
    }
    if job.method.allocation:
        rows = sum(linear.out_features for linear in job.budgeted)
        steps["allocation"] = rows * ALLOCATION_BYTES
    if job.calibrates:
        vocabulary = job.quantizing.measures_vocabulary(job.model.architecture)
        steps["calibration"] = calibrating_bytes(job.model, job.text.shape, job.resources.workers, vocabulary)
    if job.writes_text and job.resources.device is None:
        steps[TEXT] = written_text_bytes(job.model.checkpoint)
    if is_checked(job):
        steps["checking"] = checking_bytes(job.model)
    if job.effort.tune:
        steps["tuning"] = _tuning(job)
    return steps


def _quantizing(job: Job) -> int:
    resources = job.executor.resources
    most = [working_bytes(linear, resources, job.method) for linear in job.budgeted]
    most += [working_bytes(linear, resources, ONE_WIDTH) for linear in job.quantizing.apart(job.model.architecture)]
    return max(most)


def _linears(job: Job) -> list[Linear]:
    return job.model.architecture.linears + job.model.architecture.vocabulary_linears


def _tuning(job: Job) -> int:
    """Levels with their two moments, full-precision outputs, what a step has of all blocks, one block, and the head."""
    architecture, (sequences, length) = job.model.architecture, job.text.shape
    levels = 3 * MOST_FREE_LEVELS * sum(linear.out_features for linear in architecture.linears)
    block = max(sum(x.out_features * x.in_features for x in block) for block in architecture.blocks)
    tokens = 2 * sequences + HELD_OUT * (len(architecture.blocks) + 1)
    head = architecture.vocabulary_size * (architecture.hidden_size + LOGITS * HEAD_TOKENS * job.resources.workers)
    return FLOAT32_BYTES * (levels + 4 * block + tokens * length * architecture.hidden_size + head)


def _resident() -> int:
    """Resident memory of this process now, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:  # not Linux
        return UNKNOWN_RESIDENT
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
