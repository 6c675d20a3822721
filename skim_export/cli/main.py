"""The command `skim-export`: arguments in, progress and a summary out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from skim_export.bundle.target import target_names
from skim_export.cli.bundle import check_bundle_output, describe_bundle
from skim_export.pipeline.options import ExportOptions, add_arguments, from_arguments
from skim_runtime.command import run_command
from skim_runtime.errors import UserError

if TYPE_CHECKING:
    from skim_export.pipeline.cost import Cost
    from skim_export.pipeline.report import ExportReport

SUBCOMMANDS = {
    "models": "skim_export.cli.models",
    "plan": "skim_export.cli.plan",
    "bundle": "skim_export.cli.bundle",
    "tune-kernels": "skim_export.cli.tune_kernels",
    "verify": "skim_export.cli.verify",
}  # name -> module whose `main` takes the arguments after the name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skim-export",
        description="Quantize a language model to any average bit-width and write it as an ONNX model. To see the "
        "models that have an alias: skim-export models. To see first what each budget gives: skim-export plan --help.",
    )
    parser.add_argument(
        "--model", required=True, help="an alias (skim-export models), a Hugging Face id, a directory, or a GGUF file"
    )
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
    add_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only say what the export would take: time, memory and disk; a model that has an alias is not downloaded",
    )
    return parser


def _print_cost(cost: Cost, *, only_shapes: bool) -> None:
    from rich.console import Console

    steps = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in cost.seconds.items())
    sizes = cost.sizes
    line = (
        f"about {_duration(sum(cost.seconds.values()))} ({steps}), {sizes.memory / 1e9:.1f} GB of memory and "
        f"{sizes.disk / 1e9:.1f} GB of disk, of which {sizes.output / 1e9:.2f} GB stay"
    )
    if only_shapes:
        line += "; from the recipe's shapes: nothing was downloaded"
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

    def command() -> None:
        args = _parser().parse_args(arguments)
        options = ExportOptions(**from_arguments(args))
        if args.target is not None:
            if "ep" in args:
                raise UserError("--ep is of ONNX models, and --target writes none: give one of them")
            check_bundle_output(args.output, options.force)
        # Imported late: --help and mistakes in the arguments should not wait for torch.
        from skim_export.bundle.build import check_bundle_options, export_bundle
        from skim_export.bundle.lowering import read_program
        from skim_export.pipeline.cost import estimate_cost
        from skim_export.pipeline.export import prepare, run
        from skim_runtime.progress_bar import ProgressBar

        if args.target is not None:
            check_bundle_options(options)
        manifest = None
        with ProgressBar() as progress:
            if args.target is None or args.dry_run:
                output = args.output if args.target is None else args.output / "model.onnx"
                read = None if args.target is None else read_program
                job = prepare(args.model, output, options, read=read, progress=progress, download=not args.dry_run)
                _print_cost(estimate_cost(job), only_shapes=job.model.only_shapes)
                if args.dry_run:
                    return
                report = run(job, progress)
            else:
                report, manifest = export_bundle(args.model, args.target, args.output, options, progress=progress)
        if manifest is None:
            written = f"wrote {report.path} in {report.seconds:.0f} s"
            if report.error is not None:
                written += (
                    f"; it computes what transformers does with its weights, to a relative error of {report.error:.1e}"
                )
            _print_summary(
                report, f"{report.path} is there already, as this command writes it" if report.found else written
            )
        else:
            _print_summary(report, describe_bundle(manifest, args.output))

    return run_command("skim-export", command)
