"""What of the machine an export may use: plain data, which every layer may import."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Resources", "available_memory"]

ROW_GROUP = 256  # rows are taken in multiples of this, and those of such a block may be seen together
WORKING_BYTES = 20  # for one weight while it is quantized: values, sensitivities, scaled values, codes, packed codes
RUN_BYTES = 512 << 20  # of a run of rows; more at once gains nothing
DEVICE_RUN_BYTES = 2 << 30  # a GPU takes a row's columns one by one, for few rows about as long as for many
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Resources:
    """What of the machine may be used; the result does not depend on threads and memory.

    Attributes:
        threads: threads to use; as many as the process may run on by default.
        chunk_bytes: memory for the rows of a layer that are worked on at once.
        device: where torch calibrates, and where it does what is heavy in the solver, be it the CPU; None for the CPU
            and the native solver.
    """

    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    chunk_bytes: int = RUN_BYTES
    device: torch.device | None = None

    @classmethod
    def of(cls, threads: int | None, device: torch.device | None) -> Resources:
        """What an export uses by default."""
        found = cls(chunk_bytes=RUN_BYTES if device is None else DEVICE_RUN_BYTES, device=device)
        return found if threads is None else replace(found, threads=threads)

    @property
    def workers(self) -> int:
        """Sequences that are worked on at the same time: one fills a device."""
        return self.threads if self.device is None else 1

    def chunks(self, rows: int, columns: int) -> list[slice]:
        """The rows of a layer in runs that fit the memory, `ROW_GROUP` at least."""
        groups = max(1, self.chunk_bytes // (WORKING_BYTES * columns * ROW_GROUP))
        step = groups * ROW_GROUP
        return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def available_memory() -> int | None:
    """Bytes of memory that processes can still get; None if nothing reliable is known."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return None
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
