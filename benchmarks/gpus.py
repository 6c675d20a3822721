"""What is published about GPUs: the limits that set a kernel's occupancy, and what their parts can do in a clock.

Limits: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". Rates of instructions: the same,
"Throughput of Native Arithmetic Instructions", over the 32 threads of a warp. Clocks, multiprocessors and bandwidths:
NVIDIA's A100, H100 and Ada whitepapers.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ARCHITECTURES", "GPUS", "Architecture", "Gpu"]

WARP = 32
REGISTERS = 65536  # of 32 bits, in a multiprocessor
REGISTER_UNIT = 256  # that a warp gets at once
PARTITIONS = 4  # of a multiprocessor, each with a scheduler and a quarter of the registers


@dataclass(frozen=True)
class Architecture:
    """A multiprocessor's limits.

    Attributes:
        threads: at most.
        blocks: at most.
        shared_bytes: of shared memory, for all blocks together.
        block_shared_bytes: for one block.
        reserved_bytes: of shared memory that the system takes for each block.
    """

    threads: int
    blocks: int
    shared_bytes: int
    block_shared_bytes: int
    reserved_bytes: int

    def resident_blocks(self, threads: int, registers: int, shared_bytes: int) -> int:
        """How many blocks of a kernel fit into a multiprocessor.

        Args:
            threads: of a block.
            registers: of a thread.
            shared_bytes: of a block.
        """
        if shared_bytes > self.block_shared_bytes:
            return 0
        warps = -(-threads // WARP)
        of_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
        warps_that_fit = REGISTERS // PARTITIONS // of_warp * PARTITIONS
        by_shared = self.shared_bytes // (shared_bytes + self.reserved_bytes) if shared_bytes else self.blocks
        return min(self.blocks, self.threads // threads, warps_that_fit // warps, by_shared)


ARCHITECTURES = {
    "sm_75": Architecture(1024, 16, 64 << 10, 64 << 10, 0),
    "sm_80": Architecture(2048, 32, 164 << 10, 163 << 10, 1 << 10),
    "sm_86": Architecture(1536, 16, 100 << 10, 99 << 10, 1 << 10),
    "sm_89": Architecture(1536, 24, 100 << 10, 99 << 10, 1 << 10),
    "sm_90": Architecture(2048, 32, 228 << 10, 227 << 10, 1 << 10),
    "sm_120": Architecture(1536, 24, 100 << 10, 99 << 10, 1 << 10),
}


@dataclass(frozen=True)
class Gpu:
    """A GPU, and how many instructions of a warp one of its multiprocessors starts in a clock, by pipe.

    Attributes:
        name: of the model.
        architecture: such as `sm_80`.
        multiprocessors: how many.
        clock: boost clock, Hz.
        bandwidth: of the memory, bytes per second.
        rates: instructions of a warp a clock, by pipe (see roofline.py).
    """

    name: str
    architecture: str
    multiprocessors: int
    clock: float
    bandwidth: float
    rates: dict[str, float]

    @property
    def bytes_per_clock(self) -> float:
        """What a multiprocessor's share of the bandwidth brings in one clock."""
        return self.bandwidth / self.multiprocessors / self.clock


# The table's rows, in results a clock: "32-bit integer shift", "logical operations" and the like 64 (ALU), "32-bit
# floating-point add" 64 or 128 (FMA), "16-bit floating-point add" 256 or 128, two of them an instruction (half), "type
# conversions" 16 (XU). Four schedulers start an instruction each.
_COMMON = {"issue": 4.0, "ALU": 2.0, "XU": 0.5, "uniform": 4.0}
# An m16n8k16 has 2048 multiply-adds. A100: 1024 a clock (312 TFLOP/s). H100: the same is assumed, half of what it does
# with warpgroup instructions (989 TFLOP/s), which these kernels do not use. RTX 4090: 256 with float32 sums (165
# TFLOP/s). An m16n8k32 of bytes has 4096, at twice the rate, and on RTX 4090 at four times (660 TOP/s).
GPUS = (
    Gpu(
        "A100 SXM 80 GB",
        "sm_80",
        108,
        1.410e9,
        2039e9,
        {**_COMMON, "FMA": 2.0, "half": 4.0, "tensor": 0.5, "integer tensor": 0.5},
    ),
    # Its boost clock is 1.98 GHz without tensor cores.
    Gpu(
        "H100 SXM",
        "sm_90",
        132,
        1.830e9,
        3352e9,
        {**_COMMON, "FMA": 4.0, "half": 4.0, "tensor": 0.5, "integer tensor": 0.5},
    ),
    Gpu(
        "RTX 4090",
        "sm_89",
        128,
        2.520e9,
        1008e9,
        {**_COMMON, "FMA": 4.0, "half": 2.0, "tensor": 0.125, "integer tensor": 0.25},
    ),
)
