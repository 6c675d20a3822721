"""Instructions for one weight, by width and arithmetic: the same on every run, whatever else the machine does.

A native loop (custom_ops/tests/kernel_loop.cpp) runs under valgrind, so neither Python nor onnxruntime is counted. What
some repetitions take more than one is divided by their weights: what happens only once is left out. Preparing the
activations is included, as a node of the graph does it on every call. valgrind cannot run AVX-512, so the kernels
counted are those for AVX2 by default.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from cmake_build import build

from skim_export.packed import CLASSES, class_bits, class_kind, class_memory
from skim_runtime.errors import UserError
from skim_runtime.measure.options import at_least, parse_shape
from skim_runtime.measure.report import report_head, save_json
from skim_runtime.measure.tables import number, say, text_table
from skim_runtime.progress_bar import ProgressBar

__all__ = ["Count", "add_arguments", "run"]

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "custom_ops"
INSTRUCTIONS_BUILD = ROOT / "build" / "instructions"  # kept: the next run only compiles what has changed
TARGET = "skim_kernel_loop"
ARITHMETICS = ("exact", "integer")


@dataclass(frozen=True)
class Count:
    """Instructions for one weight.

    Attributes:
        row_class: class of all rows (docs/format.md).
        arithmetic: "exact" or "integer".
        tokens: M.
        instructions: for a weight, all tokens together.
    """

    row_class: int
    arithmetic: str
    tokens: int
    instructions: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--shape", default="512x4096", metavar="NxK", help="default: 512x4096")
    parser.add_argument("--tokens", nargs="+", type=int, default=[1], metavar="M", help="default: 1")
    parser.add_argument(
        "--classes", nargs="+", type=int, default=list(range(CLASSES)), metavar="C", help="row classes; default: all"
    )
    parser.add_argument("--repetitions", type=int, default=2, help="that are counted (%(default)s)")
    parser.add_argument("--kernel", choices=("avx2", "reference"), default="avx2", help="default: avx2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a JSON file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Count and print the table."""
    rows, columns = parse_shape(args.shape, 32, "--shape")
    at_least("--tokens", 1, *args.tokens)
    at_least("--repetitions", 1, args.repetitions)
    for row_class in args.classes:
        if not 0 <= row_class < CLASSES:
            raise UserError(f"--classes {row_class}: must be 0..{CLASSES - 1}")
    valgrind = _program("valgrind", "apt-get install valgrind")
    loop = _built()

    cases = [(c, a, m) for c in dict.fromkeys(args.classes) for a in ARITHMETICS for m in dict.fromkeys(args.tokens)]
    counts = []
    with ProgressBar() as progress, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        progress.start("counting", len(cases))

        def counted(case: tuple[int, str, int]) -> float:
            row_class, arithmetic, tokens = case
            command = [valgrind, str(loop), str(row_class), str(rows), str(columns), str(tokens), arithmetic]
            repetitions: int = args.repetitions
            one, more = (_instructions(command, args.kernel, n) for n in (1, 1 + repetitions))
            return (more - one) / (repetitions * rows * columns)

        for case, found in zip(cases, pool.map(counted, cases), strict=True):
            counts.append(Count(*case, found))
            progress.step(f"class {case[0]}, {case[1]}")
        progress.finish()
    report = {**report_head(), "kernel": args.kernel, "shape": args.shape, "repetitions": args.repetitions}
    save_json(args.json, {**report, "rows": [asdict(count) for count in counts]})
    say(_printed(counts, f"instructions for one weight, {args.shape}, kernel {args.kernel}"))


def _program(name: str, how: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise UserError(f"{name} is missing: {how}")
    return path


def _built() -> Path:
    """The native loop, compiled as the operator library is."""
    build(SOURCES, INSTRUCTIONS_BUILD, TARGET, "-DSKIM_BUILD_TESTS=ON")
    return INSTRUCTIONS_BUILD / TARGET


def _instructions(command: list[str], kernel: str, repetitions: int) -> int:
    """Instructions of the whole process."""
    valgrind, *program = command
    done = subprocess.run(
        [valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null", *program, str(repetitions)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"SKIM_KERNEL": kernel},
    )
    match = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or match is None:
        lines = [line for line in done.stderr.splitlines() if not line.startswith("==")] or done.stderr.splitlines()
        raise UserError(f"valgrind could not run {TARGET}: {lines[0] if lines else 'it printed no reason'}")
    return int(match[1])


def _printed(counts: list[Count], title: str) -> str:
    columns = list(dict.fromkeys((count.arithmetic, count.tokens) for count in counts))
    headings = [f"{arithmetic}, {tokens} token{'s' * (tokens > 1)}" for arithmetic, tokens in columns]
    lines = []
    found = {(count.row_class, count.arithmetic, count.tokens): count.instructions for count in counts}
    for row_class in dict.fromkeys(count.row_class for count in counts):
        memory = class_memory(row_class)
        kind = f"windows of {class_bits(row_class) + memory}" if memory else class_kind(row_class).name.lower()
        cells = [number(found.get((row_class, *column)), ".3f") for column in columns]
        lines.append((str(row_class), f"{class_bits(row_class)} bits, {kind}", *cells))
    return text_table(("class", "rows", *headings), lines, title, left=2)
