"""The command `skim-export`: arguments in, progress and a summary out."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from skim_export.bundle.target import target_names
from skim_export.checkpoint import load_recipes
from skim_export.cli.bundle import check_bundle_output, describe_bundle
from skim_export.pipeline.effort import DEFAULT_EFFORT, EFFORTS
from skim_export.quantize import METHODS
from skim_runtime.command import run_command
from skim_runtime.errors import UserError
from skim_runtime.providers import PROVIDERS

if TYPE_CHECKING:
    from skim_export.pipeline.cost import Cost
    from skim_export.pipeline.report import ExportReport

SUBCOMMANDS = {
    "plan": "skim_export.cli.plan",
    "bundle": "skim_export.cli.bundle",
    "tune-kernels": "skim_export.cli.tune_kernels",
}  # name -> module whose `main` takes the arguments after the name
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str, option: str = "--size") -> int:
    """Bytes from a text such as `2.5GB` or `800 MiB`; `option` is named where it is none."""
    match = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in UNITS or match[1].count(".") > 1:
        raise UserError(f"{option} {text}: expected a number with a unit, such as 800MB or 2.5GB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def width_or_auto(text: str) -> int | None:
    """A width, or None for `auto`."""
    return None if text == "auto" else int(text)


def add_quantizing_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what an export and its plan share: how to store and calibrate the model."""
    parser.add_argument(
        "--head-bits",
        type=width_or_auto,
        default=8,
        help="width of the embedding and the output head, 1 to 8, or auto: as the budget, which is then theirs, too "
        "(default: 8)",
    )
    parser.add_argument(
        "--codebook", choices=("int8", "float16"), default="int8", help="type of codebook entries (default: int8)"
    )
    parser.add_argument("--calib", type=Path, help="calibration text; without it the model writes its own")
    parser.add_argument("--seed", type=int, default=0, help="seed of the text that the model writes (default: 0)")
    parser.add_argument("--threads", type=int, help="threads to use (default: all); the result does not depend on it")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skim-export",
        description="Quantize a language model to any average bit-width and write it as an ONNX model. To see first "
        "what each budget gives: skim-export plan --help.",
        epilog=f"aliases: {', '.join(load_recipes())}",
    )
    parser.add_argument("--model", required=True, help="an alias (see below), a Hugging Face id, or a local directory")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=Path,
        help="the ONNX file to write, e.g. DIR/model.onnx; with --target a directory",
    )
    parser.add_argument(
        "--target", help=f"write a bundle for a device, not an ONNX model: {', '.join(target_names())}, or a .toml file"
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--bits", type=float, help="average width of the codes, 1 to 8, fractions too (default: 3)")
    budget.add_argument("--effective-bits", type=float, help="the same with codebooks and scales counted in")
    budget.add_argument("--size", help="size of the model's weights as a whole, e.g. 2.5GB")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--effort",
        choices=list(EFFORTS),
        default=DEFAULT_EFFORT,
        help="weights: look at nothing else, which takes minutes and loses most; calibrated (default): let the model "
        "read a text; tuned: fine-tune it on a longer one, too, which is better below 4 bits and takes much longer",
    )
    others = [name for name in METHODS if name not in {effort.name for effort in EFFORTS.values()}]
    how.add_argument("--method", choices=others, help="calibrate with a method to compare with")
    add_quantizing_arguments(parser)
    parser.add_argument(
        "--device",
        default="cpu",
        help="where to calibrate and quantize: cpu (default), cuda or cuda:N; results differ a little; tuning, like "
        "skim-export plan, stays on the CPU",
    )
    parser.add_argument(
        "--max-memory",
        metavar="SIZE",
        help="memory to use at most, e.g. 4GB; the result on the CPU does not depend on it",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="let the workers of a Ray cluster quantize the layers: HOST:PORT of its head, or auto; --threads and "
        "--max-memory are then of each task",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what the export would take: time, memory and disk"
    )
    parser.add_argument(
        "--accuracy-level",
        type=int,
        default=4,
        help="of the products, as for MatMulNBits: with 4 (default) activations are rounded to 16 bits and multiplied "
        "as integers, with 0 to 3 they are multiplied in float32",
    )
    parser.add_argument(
        "--ep",
        choices=list(PROVIDERS),
        help="execution provider that the ONNX model is for: cpu (default), or cuda, whose activations are float16",
    )
    parser.add_argument("--force", action="store_true", help="replace an output that exists")
    return parser


def _print_cost(cost: Cost) -> None:
    from rich.console import Console

    steps = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in cost.seconds.items())
    line = (
        f"about {_duration(sum(cost.seconds.values()))} ({steps}), {cost.memory / 1e9:.1f} GB of memory and "
        f"{cost.disk / 1e9:.1f} GB of disk, of which {cost.output / 1e9:.2f} GB stay"
    )
    Console(stderr=True).print(line, soft_wrap=True, highlight=False)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _print_summary(report: ExportReport, last_line: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("", "weights", "code bits", "effective bits", "MB"):
        table.add_column(column, justify="right" if column else "left")
    for part in report.parts:
        table.add_row(
            part.name,
            f"{part.weights / 1e6:.1f}M",
            f"{part.code_bits:.3f}" if part.code_bits else "",
            f"{part.effective_bits:.3f}",
            f"{part.nbytes / 1e6:.2f}",
        )
    console = Console()
    console.print(table)
    console.print(last_line, soft_wrap=True, highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """`skim-export`: quantize and export, or a subcommand; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in SUBCOMMANDS:
        code: int = import_module(SUBCOMMANDS[arguments[0]]).main(arguments[1:])
        return code
    args = _parser().parse_args(arguments)

    def command() -> None:
        options = {
            "bits": args.bits,
            "effective_bits": args.effective_bits,
            "size": None if args.size is None else parse_size(args.size),
            "effort": args.effort,
            "method": args.method,
            "head_bits": args.head_bits,
            "codebook": args.codebook,
            "accuracy_level": args.accuracy_level,
            "calib": args.calib,
            "seed": args.seed,
            "threads": args.threads,
            "device": args.device,
            "max_memory": None if args.max_memory is None else parse_size(args.max_memory, "--max-memory"),
            "ray": args.ray,
        }
        if args.target is not None:
            if args.ep is not None:
                raise UserError("--ep is of ONNX models, and --target writes none: give one of them")
            check_bundle_output(args.output, args.force)
        # Imported late: --help and mistakes in the arguments should not wait for torch.
        from skim_export.bundle.build import export_bundle
        from skim_export.pipeline.cost import estimate_cost
        from skim_export.pipeline.export import prepare, run
        from skim_runtime.progress_bar import ProgressBar

        manifest = None
        with ProgressBar() as progress:
            if args.target is None or args.dry_run:
                output = args.output if args.target is None else args.output / "model.onnx"
                job = prepare(args.model, output, ep=args.ep or "cpu", force=args.force, progress=progress, **options)
                _print_cost(estimate_cost(job))
                if args.dry_run:
                    return
                report = run(job, progress)
            else:
                report, manifest = export_bundle(args.model, args.target, args.output, progress=progress, **options)
        if manifest is None:
            _print_summary(report, f"wrote {report.path} in {report.seconds:.0f} s")
        else:
            _print_summary(report, describe_bundle(manifest, args.output))

    return run_command("skim-export", command)
