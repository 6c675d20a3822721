"""What an export takes of the memory, step by step, and the resources that fit into a limit."""

from __future__ import annotations

import math
from pathlib import Path

from skim_export.budget import unpacked_parameters
from skim_export.calibration.passes import GROUP
from skim_export.checkpoint import Architecture, Checkpoint, Linear
from skim_export.effort import Effort
from skim_export.packed import row_bytes
from skim_export.quantize_model import QuantizeOptions
from skim_export.resources import CHUNK_BYTES, ROW_GROUP, WORKING_BYTES, Resources
from skim_runtime.errors import UserError

__all__ = ["peak_memory", "resident_memory", "resources_within"]

ALLOCATION_BYTES = 400  # for one row: its errors and the steps of its error curve, sorted
WHOLE_LAYER_BYTES = 32  # for one weight, where a column scale is trained
FLOAT = 4


def resident_memory() -> int:
    """Resident memory of this process now, in bytes; a guess where there is no /proc."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 600 << 20
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def resources_within(
    max_memory: int | None,
    threads: int,
    checkpoint: Checkpoint,
    architecture: Architecture,
    options: QuantizeOptions,
    effort: Effort,
    tokens: tuple[int, int],
) -> Resources:
    """As large pieces of work as the memory allows.

    Args:
        max_memory: bytes, or None for no limit.
        threads: threads to use.
        checkpoint: the model.
        architecture: of the model.
        options: how to quantize.
        effort: what is done beside.
        tokens: calibration sequences and their length.

    Raises:
        UserError: the smallest pieces do not fit.
    """
    if max_memory is None:
        return Resources(threads)
    columns = max(linear.in_features for linear in [*architecture.linears, *architecture.vocabulary_linears])
    smallest = Resources(threads, ROW_GROUP * columns * WORKING_BYTES)
    least = peak_memory(smallest, checkpoint, architecture, options, effort, tokens)
    if least > max_memory:
        raise UserError(
            f"--max-memory {max_memory / 1e9:.2f}GB: too small, this export takes at least {least / 1e9:.2f}GB"
        )
    return Resources(threads, min(CHUNK_BYTES, smallest.chunk_bytes + max_memory - least))


def peak_memory(
    resources: Resources,
    checkpoint: Checkpoint,
    architecture: Architecture,
    options: QuantizeOptions,
    effort: Effort,
    tokens: tuple[int, int],
) -> int:
    """The most memory that an export has resident, in bytes; the arguments are those of `resources_within`.

    Left out is text that the model writes itself, for which all of it is in memory (see `self_generated`).
    """
    method = options.method
    linears = architecture.linears + architecture.vocabulary_linears
    steps = [max(_quantizing(linear, resources, options) for linear in linears)]
    steps.append(FLOAT * unpacked_parameters(checkpoint, architecture) + 2 * max(map(_packed_bytes, linears)))
    if method.allocation:
        rows = sum(linear.out_features for linear in options.budgeted(architecture))
        steps.append(rows * ALLOCATION_BYTES)
    if method.objective is not None:
        steps.append(_calibrating(architecture, options, tokens))
    if effort.tune:
        steps.append(_tuning(architecture, tokens))
    return resident_memory() + max(steps)


def _quantizing(linear: Linear, resources: Resources, options: QuantizeOptions) -> int:
    rows, columns = linear.out_features, linear.in_features
    chunk = resources.chunks(rows, columns)[0]
    chunk_rows = chunk.stop - chunk.start
    total: int = chunk_rows * columns * WORKING_BYTES + 2 * _packed_bytes(linear)
    if options.method.correlated:
        total += 4 * FLOAT * columns * columns  # the correlation, and what its factor is made of
    if options.method.column_scale:
        total += rows * columns * WHOLE_LAYER_BYTES
    return total


def _packed_bytes(linear: Linear) -> int:
    """At most: at 8 bits."""
    return int(linear.out_features * row_bytes(8, linear.in_features))


def _calibrating(architecture: Architecture, options: QuantizeOptions, tokens: tuple[int, int]) -> int:
    sequences, length = tokens
    hidden = FLOAT * sequences * length * architecture.hidden_size
    blocks = []
    for block in architecture.blocks:
        weights = FLOAT * sum(linear.out_features * linear.in_features for linear in block)
        moments = [FLOAT * linear.in_features**2 for linear in block]
        channels = sum(linear.out_features + linear.in_features for linear in block)
        seen = FLOAT * min(GROUP, sequences) * length * channels
        blocks.append(2 * weights + sum(moments) + max(2 * max(moments), seen) + 3 * hidden)
    head = FLOAT * architecture.vocabulary_size * architecture.hidden_size
    return max(*blocks, 3 * hidden + head * (2 if options.head_bits is not None else 4))


def _tuning(architecture: Architecture, tokens: tuple[int, int]) -> int:
    """Codes of all layers, and levels with their two moments, beside one block."""
    codes = sum(linear.out_features * linear.in_features for linear in architecture.linears)
    levels = sum(linear.out_features for linear in architecture.linears) * 3 * FLOAT * 64
    block = 4 * FLOAT * max(sum(x.out_features * x.in_features for x in block) for block in architecture.blocks)
    states = 2 * FLOAT * math.prod(tokens) * architecture.hidden_size
    return codes + levels + block + states + FLOAT * architecture.vocabulary_size * architecture.hidden_size
