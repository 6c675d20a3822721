"""How close prefill can come to cuBLAS on an H100, by the machine code of its kernels: without a GPU.

Both prefill kernels are compiled for some classes of rows (prefill_probe.cu). What a stage of 128 columns takes a
multiprocessor, by each of its parts:

- tensor: the multiplications of the stage, at the published rate, or half of it for mma.sync;
- issue, ALU, FMA, half: instructions of all warps on the way through the stage's loop, over the pipes' rates (gpus.py);
- shared: bytes between registers, operands of warpgroups, and shared memory or L1 cache;
- L2: activations and codes that the block reads, over an even share of what the L2 cache gives.

The longest is what the stage takes. A block takes its stages; one that is alone on a multiprocessor takes longer by its
end, the instructions that store its products, and by WAIT, a guess of what it waits at its begin. The multiprocessors
take as many rounds of blocks as there are. Memory's bandwidth is the last limit: each token and output moves once,
weights once for every group of tokens that is multiplied together. What is assumed of cuBLAS is CUBLAS_SHARE of the
tensor cores' rate, or MEMORY_SHARE of the bandwidth, whichever takes longer, and no rounds.

Nothing is known here of latencies within a stage, of banks and of clocks below boost.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cuda_build import Nvcc
from gpus import GPUS, WARP, Gpu
from ptxas_report import demangled
from roofline import CODEBOOKS, SHARED_BYTES_PER_CLOCK, level_kind, pipe
from sass import Function, disassemble, find_nvdisasm

from skim_export.packed import CodebookType, class_bits, row_bytes
from skim_runtime.measure.options import at_least, parse_shape
from skim_runtime.measure.report import report_head, save_json
from skim_runtime.measure.tables import markdown_table, say, write_markdown

__all__ = ["Prediction", "add_arguments", "predict", "run"]

PROBE = Path(__file__).with_name("prefill_probe.cu")
H100 = next(gpu for gpu in GPUS if gpu.architecture == "sm_90")
STAGE_COLUMNS = 128
GROUP_TILES = 8  # of tokens, that Hopper's kernel multiplies together (FindTileNearOthers)
TENSOR_PRODUCTS = 2048  # multiply-adds of a multiprocessor in a clock: 989 TFLOP/s; half of it for mma.sync
L2_BYTES_PER_CLOCK = 5120  # of all multiprocessors together (A100 whitepaper; the H100's is not published)
WAIT = 2000  # clocks: three times from memory to a multiprocessor, one after the other
CUBLAS_SHARE, MEMORY_SHARE = 0.75, 0.9


@dataclass(frozen=True)
class Kernel:
    """The shape of a kernel's blocks.

    Attributes:
        name: as the table shows it.
        rows: of a block.
        tokens: of a block.
        multipliers: warps that multiply.
        fillers: warps that bring activations, and do nothing else.
        multiplication: the instruction.
        products: multiply-adds of one multiplication, of a warp or of a warpgroup's warp.
        rate: multiply-adds of a multiprocessor in a clock.
        operand_bytes: that a multiplication of a warpgroup reads from shared memory, for one of its warps.
        resident: blocks of a multiprocessor.
    """

    name: str
    rows: int
    tokens: int
    multipliers: int
    fillers: int
    multiplication: str
    products: int
    rate: float
    operand_bytes: int
    resident: int


MMA = Kernel("mma.sync", 128, 64, 4, 0, "HMMA", 16 * 8 * 16, TENSOR_PRODUCTS / 2, 0, 2)
WARPGROUP = {
    (rows, tokens): Kernel(
        f"wgmma, {rows} rows, {tokens} tokens",
        rows,
        tokens,
        8,
        4,
        "HGMMA",
        16 * tokens * 16,
        TENSOR_PRODUCTS,
        tokens * 16 * 2 // 4,
        1,
    )
    for rows, tokens in ((128, 64), (128, 128), (256, 128))
}


@dataclass(frozen=True)
class Prediction:
    """What a kernel can reach for one product.

    Attributes:
        kernel: its name.
        row_class: of all rows.
        codebook: type of their tables.
        rows: N.
        columns: K.
        tokens: M.
        clocks: of a stage, by what takes them.
        limit: what takes longest: one of these, or the memory's bandwidth.
        microseconds: of the product.
        cublas_share: speed in proportion to what is assumed of cuBLAS.
    """

    kernel: str
    row_class: int
    codebook: CodebookType
    rows: int
    columns: int
    tokens: int
    clocks: dict[str, float]
    limit: str
    microseconds: float
    cublas_share: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--shape", default="14336x4096", metavar="NxK", help="default: 14336x4096")
    parser.add_argument(
        "--tokens", nargs="+", type=int, default=[32, 128, 512, 2048], metavar="M", help="default: 32 128 512 2048"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a JSON file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table to a Markdown file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compile, count, and print the table."""
    shape = parse_shape(args.shape, 256, "--shape")
    at_least("--tokens", 1, *args.tokens)
    nvcc = Nvcc()
    find_nvdisasm()  # before a minute of compilation
    probes = [f for f in disassemble(nvcc.cubin(PROBE, "sm_90a")).values() if "Probe<" in demangled(f.name)]
    found = [predict(probe, H100, *shape, tokens) for tokens in args.tokens for probe in probes]
    predictions = [prediction for prediction in found if prediction is not None]
    table = _table(predictions)
    say(table)
    save_json(args.json, {**report_head(), "rows": [asdict(prediction) for prediction in predictions]})
    write_markdown(args.markdown, [table])


def predict(probe: Function, gpu: Gpu, rows: int, columns: int, tokens: int) -> Prediction | None:
    """What a probe can reach on a GPU; None if another one's tiles are taken for so many tokens."""
    name, parameters = demangled(probe.name).rstrip(">").split("<", 1)
    table, row_class, *tiles = (parameter.rsplit(")", 1)[-1].strip(" >()") for parameter in parameters.split(","))
    kernel = WARPGROUP[128 * int(tiles[0]), 8 * int(tiles[1])] if name == "WarpgroupProbe" else MMA
    if kernel is not MMA and kernel is not _fastest_tiles(gpu, rows, tokens):
        return None
    codebook, number = CODEBOOKS[table], int(row_class)
    width = class_bits(number)

    clocks = _stage(probe, kernel, gpu)
    codes = kernel.rows * row_bytes(width, columns) / columns
    from_l2 = STAGE_COLUMNS * (2 * kernel.tokens + codes)
    clocks["L2"] = from_l2 / (L2_BYTES_PER_CLOCK / gpu.multiprocessors)
    limit = max(clocks, key=lambda of: clocks[of])
    block = columns / STAGE_COLUMNS * clocks[limit]
    end = _end(probe, kernel) / gpu.rates["issue"]
    rounds = _rounds(kernel, gpu, rows, tokens)
    # Blocks that share a multiprocessor hide each other's begin and end, but for the first and the last.
    seconds = (rounds * block + (rounds if kernel.resident == 1 else 1) * (end + WAIT)) / gpu.clock

    weights = rows * row_bytes(width, columns)
    together = GROUP_TILES * kernel.tokens if kernel is not MMA else tokens
    moved = 2 * tokens * (columns + rows) + weights * -(-tokens // together)
    if moved / gpu.bandwidth > seconds:
        seconds, limit = moved / gpu.bandwidth, "memory"
    dense = max(
        rows * columns * tokens / (CUBLAS_SHARE * TENSOR_PRODUCTS * gpu.multiprocessors * gpu.clock),
        2 * (rows * columns + tokens * (rows + columns)) / (MEMORY_SHARE * gpu.bandwidth),
    )
    return Prediction(
        kernel.name, number, codebook, rows, columns, tokens, clocks, limit, 1e6 * seconds, dense / seconds
    )


def _fastest_tiles(gpu: Gpu, rows: int, tokens: int) -> Kernel:
    """As LaunchFastestTiles takes them (prefill_hopper.cuh)."""
    times = {(128, 64): 10, (128, 128): 17, (256, 128): 29}
    return min(
        (WARPGROUP[tiles] for tiles in reversed(times)),
        key=lambda kernel: _rounds(kernel, gpu, rows, tokens) * times[kernel.rows, kernel.tokens],
    )


def _rounds(kernel: Kernel, gpu: Gpu, rows: int, tokens: int) -> int:
    """How often the multiprocessors take a block each."""
    return -(-(-(-rows // kernel.rows) * -(-tokens // kernel.tokens)) // gpu.multiprocessors)


def _stage(probe: Function, kernel: Kernel, gpu: Gpu) -> dict[str, float]:
    """The clocks of a stage, by what takes them, all warps together."""
    code = probe.instructions
    loop = _longest(probe, kernel.multiplication)
    path = set(probe.path(lambda at: code[at].operation in (kernel.multiplication, "LDS", "LDG", "LDGSTS")))
    times = {at: float(kernel.multipliers) for at in loop if at in path}
    if kernel.fillers:
        times |= {at: kernel.fillers * often for at, often in _filling(probe, kernel).items()}
    counts: dict[str, float] = defaultdict(float)
    moved = 0.0
    for at, often in times.items():
        counts["issue"] += often
        if code[at].operation == kernel.multiplication:
            counts["tensor"] += often * kernel.products
            moved += often * kernel.operand_bytes
        elif (of := pipe(code[at])) == "memory":
            moved += often * WARP * code[at].nbytes
        elif of is not None:
            counts[of] += often
    wanted = kernel.rows * kernel.tokens * STAGE_COLUMNS
    if counts["tensor"] < wanted:  # mma.sync has more for affine rows, of which a warp runs some
        raise ValueError(f"{probe.name}: a stage has {counts['tensor']:.0f} products, not {wanted}")
    clocks = {of: count / gpu.rates[of] for of, count in counts.items() if of != "tensor"}
    return {"tensor": wanted / kernel.rate, **clocks, "shared": moved / SHARED_BYTES_PER_CLOCK}


def _filling(probe: Function, kernel: Kernel) -> dict[int, float]:
    """How often a warp that fills a stage runs each instruction of its loop."""
    code = probe.instructions

    def stores(at: int) -> bool:
        return code[at].operation == "STS" and "128" in code[at].modifiers

    loops = sorted((loop for loop in probe.loops() if any(map(stores, loop))), key=len)
    whole, batch = loops[-1], loops[0] if len(loops) > 1 else range(0)
    path = set(probe.path(lambda at: code[at].operation in ("LDG", "STS") and "128" in code[at].modifiers))
    of_batch = sum(map(stores, batch))
    batches = 2 * kernel.tokens * STAGE_COLUMNS / (kernel.fillers * WARP * 16 * of_batch) if of_batch else 1.0
    return {at: batches if at in batch else 1.0 for at in whole if at in path}


def _end(probe: Function, kernel: Kernel) -> float:
    """Instructions of all warps for storing a block's products."""
    code = probe.instructions

    def count(operation: str, loop: range) -> int:
        return sum(code[at].operation == operation for at in loop)

    stores = [loop for loop in probe.loops() if count("STG", loop)]
    best = min(stores, key=lambda loop: len(loop) / count("STG", loop))  # of y = p
    outputs = kernel.rows * kernel.tokens / WARP
    return outputs * (len(best) / count("STG", best) + 1)  # and one to write it to shared memory before


def _longest(probe: Function, operation: str) -> range:
    code = probe.instructions
    return max((loop for loop in probe.loops() if any(code[at].operation == operation for at in loop)), key=len)


def _table(predictions: Sequence[Prediction]) -> str:
    """A line for each class of rows, kernel and M."""
    parts = ("tensor", "issue", "ALU", "shared", "L2")
    headings = ("rows", "kernel", "M", *parts, "µs", "limit", "of cuBLAS")
    lines = []
    for found in sorted(predictions, key=lambda p: (p.codebook, p.row_class, p.tokens, p.kernel)):
        clocks = (f"{found.clocks.get(part, 0):.0f}" for part in parts)
        name = f"{level_kind(found.row_class, found.codebook)}, {class_bits(found.row_class)} bits"
        row = (name, found.kernel, str(found.tokens), *clocks, f"{found.microseconds:.0f}")
        lines.append((*row, found.limit, f"{found.cublas_share:.0%}"))
    first = predictions[0]
    title = (
        f"{first.rows}x{first.columns} on {H100.name}: clocks of a stage of {STAGE_COLUMNS} columns, and the product"
    )
    return f"{title}\n\n{markdown_table(headings, lines)}"
