"""How close the CUDA kernels can come to the speed of memory, by the instructions in their machine code: without a GPU.

Each class of rows is compiled as a decode kernel of its own (roofline_probe.cu), for one token. What a warp runs of it
for a tile of 16 rows is the shortest way through all tensor core instructions and copies of weights, their loops as
often as K asks for and others once; one warp of a block goes on to store the result. A multiprocessor takes at least

- what its share of the memory's bandwidth takes to bring the tile's codes and levels, and
- for each pipe, the instructions of the block's warps over the pipe's rate (gpus.py).

The longest of these is the limit; the first one over it is the share of the bandwidth that the kernel can reach. The
model knows nothing of waiting: latencies, barriers, banks, caches and clocks below boost make it slower than predicted.
A second table (decode_latency.py) says what latencies and a scheduler with few warps make of it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cuda_build import Nvcc
from decode_latency import flight
from gpus import GPUS, WARP, Gpu
from ptxas_report import demangled
from sass import Function, Instruction, disassemble, find_nvdisasm

from skim_export.packed import CodebookType, LevelKind, RowClass, class_bits, class_kind, class_memory
from skim_runtime.errors import UserError
from skim_runtime.measure.options import at_least
from skim_runtime.measure.report import report_head, save_json
from skim_runtime.measure.tables import markdown_table, say, write_markdown

__all__ = ["CODEBOOKS", "Prediction", "add_arguments", "level_kind", "pipe", "predict", "run"]

PROBE = Path(__file__).with_name("roofline_probe.cu")
BLOCK_WARPS, BLOCK_ROWS = 8, 16  # of a block (custom_ops/cuda/gpu/decode.cuh)
WEIGHTS_OF_MMA = 16 * 16  # of a tensor core instruction
UNIT_WEIGHTS = 16 * 512  # that a warp multiplies at a time (custom_ops/cuda/gpu/code_stream.cuh)
REGISTER_BITS = 4  # up to which codebooks are copied with the codes
SHARED_BYTES_PER_CLOCK = 128  # that a multiprocessor moves between registers and shared memory or L1 cache
COUNTED = GPUS[1]  # whose instructions the table shows: they hardly differ
CODEBOOKS: dict[str, CodebookType] = {"0": "int8", "1": "float16"}  # by skim::cuda::LevelKind

PIPES = {
    "ALU": "PRMT LOP3 SHF IADD3 ISETP LEA SEL MOV IMNMX VIMNMX IABS BMSK SGXT LOP PLOP3 FSETP FSEL FMNMX P2R R2P I2FP",
    "FMA": "IMAD FFMA FADD FMUL FFMA32I IDP",
    "half": "HADD2 HMUL2 HFMA2 HSETP2 HMNMX2",
    "tensor": "HMMA",
    "integer tensor": "IMMA",
    "XU": "MUFU I2F F2I F2F FRND POPC FLO BREV",
    "memory": "LDG STG LDS STS LDGSTS LDSM LDC LDL STL SHFL",
}
_PIPE_OF = {operation: name for name, operations in PIPES.items() for operation in operations.split()}


@dataclass(frozen=True)
class Prediction:
    """What one class of rows can reach on one GPU.

    Attributes:
        gpu: its name.
        kind: of the rows' levels, with their memory m if they have windows, and whether activations are integers.
        bits: their width.
        memory: bits of a window beside those of its code.
        columns: K.
        instructions: of a thread for a weight, by pipe, and in sum ("issue").
        clocks: of a multiprocessor for a block, by what takes them: pipes, and the "bandwidth".
        limit: which of them is the longest.
        bandwidth_share: the part of the bandwidth that is left by it.
    """

    gpu: str
    kind: str
    bits: int
    memory: int
    columns: int
    instructions: dict[str, float]
    clocks: dict[str, float]
    limit: str
    bandwidth_share: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--columns", nargs="+", type=int, default=[4096, 8192], metavar="K", help="default: 4096 8192")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a JSON file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables to a Markdown file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compile, count, and print a table for each K."""
    at_least("--columns", 1, *args.columns)
    for columns in args.columns:
        if columns % 512:
            raise UserError(f"--columns {columns}: must be a multiple of 512")
    nvcc = Nvcc()
    find_nvdisasm()  # before minutes of compilation
    predictions = []
    for gpu in GPUS:
        functions = disassemble(nvcc.cubin(PROBE, gpu.architecture)).values()
        probes = [function for function in functions if "Probe<" in demangled(function.name)]
        predictions += [predict(probe, gpu, columns) for columns in args.columns for probe in probes]
    tables = []
    for columns in args.columns:
        of_columns = [found for found in predictions if found.columns == columns]
        tables += [_table(of_columns), _latency_table(of_columns)]
    say(*tables)
    save_json(args.json, {**report_head(), "rows": [asdict(prediction) for prediction in predictions]})
    write_markdown(args.markdown, tables)


def pipe(instruction: Instruction) -> str | None:
    """The pipe that an instruction goes to; None if it takes no more than its start."""
    if instruction.operation.startswith("U") or instruction.operation == "R2UR":
        return "uniform"
    return _PIPE_OF.get(instruction.operation)


def level_kind(number: int, codebook: CodebookType) -> str:
    """What the levels of the rows of a class are, with their memory m if they have windows."""
    if class_kind(number) == LevelKind.AFFINE:
        return "affine"
    memory = class_memory(number)
    return f"{codebook} table" + (f", m = {memory}" if memory else "")


def predict(probe: Function, gpu: Gpu, columns: int) -> Prediction:
    """What a probe's rows can reach on a GPU."""
    parameters = demangled(probe.name).split("<")[1].split(">")[0]
    table, number, integers = (part.strip().rsplit(")", 1)[-1] for part in parameters.split(","))
    codebook, bits, memory = CODEBOOKS[table], class_bits(int(number)), class_memory(int(number))
    row_class = RowClass.of(class_kind(int(number)), bits, codebook, memory)
    in_registers = row_class.kind == LevelKind.TABLE and bits + memory <= REGISTER_BITS
    counts: dict[str, float] = defaultdict(float)
    moved = 0.0
    for at, times in _block(probe, bits, in_registers, columns).items():
        instruction = probe.instructions[at]
        counts["issue"] += times
        if (of := pipe(instruction)) == "memory":
            moved += times * WARP * instruction.nbytes
        elif of is not None:
            counts[of] += times
    clocks = {of: count / gpu.rates[of] for of, count in counts.items()}
    clocks["memory"] = moved / SHARED_BYTES_PER_CLOCK
    clocks["bandwidth"] = BLOCK_ROWS * (row_class.row_bytes(columns) + row_class.level_bytes) / gpu.bytes_per_clock
    limit = max(clocks, key=lambda of: clocks[of])
    weights = BLOCK_ROWS * columns
    return Prediction(
        gpu=gpu.name,
        kind=level_kind(int(number), codebook) + (", integers" if integers == "true" else ""),
        bits=bits,
        memory=memory,
        columns=columns,
        instructions={of: WARP * count / weights for of, count in counts.items()},
        clocks=clocks,
        limit=limit,
        bandwidth_share=clocks["bandwidth"] / clocks[limit],
    )


def _block(probe: Function, bits: int, in_registers: bool, columns: int) -> dict[int, float]:
    """How often the warps of a block run each instruction for a tile of rows, all together.

    Args:
        probe: the kernel.
        bits: of a code.
        in_registers: whether codebooks are looked up there, for which they are copied with the codes.
        columns: K.
    """
    code = probe.instructions

    def count(what: Callable[[Instruction], bool], loop: range) -> int:
        return sum(what(code[at]) for at in loop)

    # Each loop once, the longest first: several jumps may end at the same place.
    loops = sorted({loop.start: loop for loop in sorted(probe.loops(), key=len)}.values(), key=len, reverse=True)
    multiplying = [loop for loop in loops if count(_multiplies, loop)]
    of_tiles = [loop for loop in multiplying if count(_stores, loop)][-1]
    inner = [loop for loop in multiplying if of_tiles.start < loop.start and loop.stop < of_tiles.stop]
    of_units = next(loop for loop in inner if count(_copies, loop))
    # Wide tables have loops over words inside: each as often as it takes to multiply a unit.
    of_words = [loop for loop in inner if of_units.start < loop.start and loop.stop < of_units.stop]
    words = (UNIT_WEIGHTS / WEIGHTS_OF_MMA / count(_multiplies, inner[-1])) ** (1 / max(1, len(of_words)))
    # Of the copies in no loop of their own, which is one of activations, as many are run as there are vectors of codes;
    # the last of them is of codebooks.
    copying = [loop for loop in loops if count(_copies, loop) and not count(_multiplies, loop)]
    copies = [at for at in of_units if _copies(code[at]) and not any(at in loop for loop in copying)]
    run = {*copies[: 2 * bits], *(copies[16:] if in_registers else ())}

    def worth(at: int) -> int:
        return (1 if at in run else -1) if _copies(code[at]) else int(_multiplies(code[at]))

    turns = BLOCK_ROWS * columns / UNIT_WEIGHTS / BLOCK_WARPS
    times: dict[int, float] = {}
    ways = (probe.path(worth), probe.path(lambda at: worth(at) + _stores(code[at])))
    for warps, way in zip((BLOCK_WARPS - 1, 1), ways, strict=True):
        for at in way:
            if at not in of_tiles:
                continue  # runs once, whatever the number of tiles
            of_warp = turns if at in of_units else 1
            for loop in of_words:
                of_warp *= words if at in loop else 1
            times[at] = times.get(at, 0) + warps * of_warp
    return times


def _multiplies(instruction: Instruction) -> bool:
    return instruction.operation in ("HMMA", "IMMA")


def _copies(instruction: Instruction) -> bool:
    return instruction.operation == "LDGSTS"


def _stores(instruction: Instruction) -> bool:
    """Whether it stores outputs."""
    return instruction.operation == "STG"


def _table(predictions: Sequence[Prediction]) -> str:
    """One K: a line for each kind and width of rows, a column for each GPU."""
    pipes = ("issue", "ALU", "FMA", "half", "tensor", "integer tensor")
    headings = ("rows", "instructions", *pipes[1:], *(gpu.name for gpu in GPUS))
    of_gpu = {(found.gpu, found.kind, found.bits): found for found in predictions}
    lines = []
    for kind, bits in sorted({(found.kind, found.bits) for found in predictions}):
        counted = of_gpu[COUNTED.name, kind, bits].instructions
        shares = []
        for gpu in GPUS:
            found = of_gpu[gpu.name, kind, bits]
            limit = "" if found.limit == "bandwidth" else f" {found.limit}"
            shares.append(f"{found.bandwidth_share:.0%}{limit}")
        lines.append(
            (f"{kind}, {bits} bit{'s' * (bits > 1)}", *(f"{counted.get(name, 0):.2f}" for name in pipes), *shares)
        )
    columns = predictions[0].columns
    title = f"K = {columns}: instructions for a weight on {COUNTED.name}, shares of the bandwidth, and what limits them"
    return f"{title}\n\n{markdown_table(headings, lines)}"


def _latency_table(predictions: Sequence[Prediction]) -> str:
    """One K on the GPU whose instructions are counted: a line for each kind and width in registers."""
    (gpu,) = (gpu for gpu in GPUS if gpu.name == COUNTED.name)
    lines = []
    for found in sorted((found for found in predictions if found.gpu == gpu.name), key=lambda of: (of.kind, of.bits)):
        affine = found.kind.startswith("affine")
        if found.bits + found.memory > REGISTER_BITS and not affine:
            continue
        codebook: CodebookType = "int8" if found.kind.startswith("int8") else "float16"
        entries = RowClass.of(LevelKind.TABLE, found.bits, codebook, found.memory).entries
        table_bytes = 0 if affine else entries * (1 if codebook == "int8" else 2)
        of = flight(gpu, found.bits, found.columns, table_bytes, found.clocks)
        lines.append(
            (
                f"{found.kind}, {found.bits} bit{'s' * (found.bits > 1)}",
                f"{of.needed / 1024:.0f}",
                f"{of.streamed / 1024:.0f}",
                f"{of.one_by_one:.0f}",
                f"{of.one_by_one_share:.0%}",
                f"{found.clocks['bandwidth']:.0f}",
                f"{of.tile:.0f}",
                f"{of.share:.0%}",
            )
        )
    headings = (
        *("rows", "KiB needed", "KiB on their way", "clocks, one by one", "share of bandwidth"),
        *("clocks of transfer", "clocks of a tile", "share of the bandwidth"),
    )
    title = f"K = {predictions[0].columns}: latency on {gpu.name}, as decode_latency.py assumes"
    return f"{title}\n\n{markdown_table(headings, lines)}"
