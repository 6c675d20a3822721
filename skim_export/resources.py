"""What of the machine an export may use."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Resources"]

ROW_GROUP = 256  # rows are taken in multiples of this
WORKING_BYTES = 20  # for one weight while it is quantized: values, sensitivities, scaled values, codes, packed codes
CHUNK_BYTES = 512 << 20  # more at once gains nothing


@dataclass(frozen=True)
class Resources:
    """What of the machine may be used; the result does not depend on it.

    Attributes:
        threads: threads to use.
        chunk_bytes: memory for the rows of a layer that are worked on at once.
    """

    threads: int
    chunk_bytes: int = CHUNK_BYTES

    def chunks(self, rows: int, columns: int) -> list[slice]:
        """The rows of a layer in runs that fit the memory, `ROW_GROUP` at least."""
        groups = max(1, self.chunk_bytes // (WORKING_BYTES * columns * ROW_GROUP))
        step = groups * ROW_GROUP
        return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
