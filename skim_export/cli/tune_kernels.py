"""The command `skim-export tune-kernels`: a target in, its file with faster schedules out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from skim_export.measure.running.options import add_machine_arguments, cold_bytes, open_machine
from skim_runtime.command import run_command
from skim_runtime.errors import UserError

if TYPE_CHECKING:
    from skim_export.measure.tune import Finding

__all__ = ["main"]

BITS = ["3", "1", "2", "4", "5", "6", "7", "8", "8-affine"]
EPILOG = (
    "The first width, in float arithmetic, makes the schedule; other widths and integer arithmetic get overrides where "
    "theirs are faster. Each candidate is compared with numpy before it is timed, with one thread. Nothing else should "
    "run on the machine meanwhile."
)


def main(argv: Sequence[str]) -> int:
    """`skim-export tune-kernels`: find the fastest schedules of a machine; returns the exit code."""
    args = _parser().parse_args(argv)
    return run_command("skim-export tune-kernels", lambda: _run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skim-export tune-kernels",
        description="Find the fastest schedules of a bundle's kernels, on this machine or on a board.",
        epilog=EPILOG,
    )
    parser.add_argument("--target", required=True, help="a name, such as rpi5 or x86-avx2, or a .toml file like theirs")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE.toml", help="the file to write (default: TARGET-tuned.toml)"
    )
    parser.add_argument(
        "--bits", nargs="+", default=BITS, metavar="B", help=f"widths of the rows (default: {' '.join(BITS)})"
    )
    parser.add_argument(
        "--shape", nargs="+", default=["4096x4096"], metavar="NxK", help="layers to time (default: 4096x4096)"
    )
    add_machine_arguments(parser)
    return parser


def _run(args: argparse.Namespace) -> None:
    # Imported late: --help should not wait for numpy and TVM.
    from skim_export.bundle.build import check_target
    from skim_export.bundle.target import load_cpu_target
    from skim_export.bundle.target_file import target_file
    from skim_export.measure.running.layers import parse_classes
    from skim_runtime.measure.options import parse_shape
    from skim_runtime.measure.report import machine
    from skim_runtime.progress_bar import ProgressBar

    check_target(args.target)
    target = load_cpu_target(args.target)
    shapes = [parse_shape(shape, 32, "--shape") for shape in args.shape]
    classes = parse_classes(args.bits)
    cold = cold_bytes(args)
    output = args.output or Path(f"{target.name}-tuned.toml")
    if output.suffix != ".toml" or not output.parent.is_dir():
        raise UserError(f"--output {output}: must be a .toml file in a directory that exists")
    timed_on = open_machine(args, target, threads=1)

    from skim_export.measure.tune import overrides, tune

    products = [(row_class, integer) for integer in (False, True) for row_class in classes]
    where = f"{args.rpc_key or target.name}, by RPC" if args.rpc else machine()["processor"]
    findings = []
    with ProgressBar() as progress:
        for finding in tune(timed_on, products, shapes, cold, progress):
            findings.append(finding)
            schedule, changes = overrides(findings)
            tuned = replace(target, schedule=schedule, overrides=changes)
            _write(output, target_file(tuned, f"Schedules found by skim-export tune-kernels on {where}"))
    _print(findings, f"{target.name}, {' '.join(args.shape)}, 1 thread")


def _write(output: Path, text: str) -> None:
    """Write what is known by now: it takes long, and may be interrupted."""
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror})") from error


def _print(findings: Sequence[Finding], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=None, header_style="", title_justify="left", pad_edge=False)
    for heading in ("rows", "arithmetic", "way", "numbers"):
        table.add_column(heading, no_wrap=True)
    for heading in ("M", "ms before", "ms", "Gweights/s", "GB/s", "GFLOP/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for finding in findings:
        for (role, tokens), (before, seconds) in finding.seconds.items():
            numbers = asdict(getattr(finding.schedule, role))
            table.add_row(
                finding.row_class.name,
                "integer" if finding.integer else "float",
                role,
                " ".join(f"{key}={value}" for key, value in numbers.items()),
                str(tokens),
                f"{1e3 * before:.3f}",
                f"{1e3 * seconds:.3f}",
                f"{finding.weights / seconds / 1e9:.1f}",
                f"{finding.nbytes / seconds / 1e9:.2f}",
                f"{2 * tokens * finding.weights / seconds / 1e9:.1f}",
            )
    Console(width=170).print(table)
