"""What waiting takes from decoding, which roofline.py leaves out.

That is what must be on its way to keep memory busy, and the clocks of a tile of rows if loading, decoding and storing
come one after the other, or at the same time. Three figures are assumed: the latency of busy memory, the part of a
multiprocessor's issue slots that two warps a scheduler make use of, and what a block takes to begin, to add up and to
store.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpus import ARCHITECTURES, Gpu

__all__ = ["Flight", "flight"]

LATENCY = 900.0  # clocks from a request to its data
ISSUED = 0.7  # of the issue slots
BEGIN, END = 200.0, 1000.0  # clocks of a block that has one tile
WARPS, BLOCKS = 8, 2  # of a block, and of a multiprocessor (custom_ops/cuda/gpu/decode.cuh)
MAX_SLOTS, UNIT_BYTES = 3, 1024  # of a warp; of a unit, for a bit
TOKEN_BYTES = 2  # of a column


@dataclass(frozen=True)
class Flight:
    """What is on its way to a multiprocessor, and what comes of it.

    Attributes:
        needed: bytes that keep memory busy: bandwidth times latency (Little's law).
        streamed: bytes that blocks have on their way while they decode.
        one_by_one: clocks of a block that loads a tile, then decodes it, then stores it.
        one_by_one_share: the part of the bandwidth that as many such blocks reach as there are.
        tile: clocks of a multiprocessor for a tile, if codes come while others are decoded.
        share: the part of the bandwidth that is reached then.
    """

    needed: float
    streamed: float
    one_by_one: float
    one_by_one_share: float
    tile: float
    share: float


def flight(gpu: Gpu, bits: int, columns: int, table_bytes: int, clocks: dict[str, float]) -> Flight:
    """Of rows of up to 4 bits or even levels, for one token.

    Args:
        gpu: where.
        bits: of a code.
        columns: K.
        table_bytes: of a row's codebook, if it is copied with the codes.
        clocks: of a tile, as roofline.py counts them.
    """
    transfer = clocks["bandwidth"]
    busy = max(clocks["issue"] / ISSUED, *(of for name, of in clocks.items() if name not in ("issue", "bandwidth")))
    architecture = ARCHITECTURES[gpu.architecture]
    room = (
        min(architecture.block_shared_bytes, architecture.shared_bytes // BLOCKS - architecture.reserved_bytes)
        - columns * TOKEN_BYTES
    )
    unit = UNIT_BYTES * bits
    slots = max(1, min(MAX_SLOTS, room // (WARPS * (unit + 16 * table_bytes))))
    needed = gpu.bytes_per_clock * LATENCY
    streamed = float(BLOCKS * WARPS * slots * unit)
    one_by_one = BEGIN + LATENCY + transfer + busy + END
    tile = max(transfer * max(1.0, needed / streamed), busy)
    return Flight(
        needed=needed,
        streamed=streamed,
        one_by_one=one_by_one,
        one_by_one_share=min(1.0, BLOCKS * transfer / one_by_one),
        tile=tile,
        share=transfer / tile,
    )
