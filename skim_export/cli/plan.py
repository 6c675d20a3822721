"""The command `skim-export plan`: arguments in, a table with a curve out."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from skim_export.pipeline.options import PLANNED, add_arguments, from_arguments, parse_size
from skim_runtime.command import run_command
from skim_runtime.measure.report import check_json, report_head, save_json

if TYPE_CHECKING:
    from skim_export.pipeline.plan import Plan

__all__ = ["main"]

BAR_WIDTH = 20
EIGHTHS = " ▏▎▍▌▋▊▉█"
NOTE = (
    "Predicted, not measured: from 0.5 * sum F d^2, with F the Fisher information of the weights and d their errors at "
    "the allocated widths, by a power law fitted to one model; the errors of embedding and head are left out."
)


def main(argv: Sequence[str]) -> int:
    """`skim-export plan`: predict size and perplexity of a range of budgets; returns the exit code."""

    def command() -> None:
        args = _parser().parse_args(argv)
        check_json(args.json)
        # Imported late: --help and mistakes in the arguments should not wait for torch.
        from skim_export.pipeline.plan import AVERAGES, plan
        from skim_runtime.progress_bar import ProgressBar

        with ProgressBar() as progress:
            planned = plan(
                args.model,
                bits=AVERAGES if args.bits is None else args.bits,
                sizes=args.budget_size,
                text=args.text,
                progress=progress,
                **from_arguments(args, PLANNED),
            )
        _print_plan(planned)
        save_json(args.json, {**report_head(), "model": args.model, **planned.as_json()})

    return run_command("skim-export plan", command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skim-export plan",
        description="Predict size and perplexity for a range of budgets, before a model is quantized.",
    )
    parser.add_argument(
        "--model", required=True, help="an alias (skim-export models), a Hugging Face id, a directory, or a GGUF file"
    )
    parser.add_argument(
        "--bits",
        type=float,
        nargs="+",
        metavar="BITS",
        help="average widths of the codes, 1 to 8 (default: 2 2.25 2.5 2.75 3 3.25 3.5 4 5 6)",
    )
    parser.add_argument(
        "--budget-size",
        type=partial(parse_size, "--budget-size"),
        nargs="+",
        default=[],
        metavar="SIZE",
        help="also these sizes of the whole model, e.g. 80MB",
    )
    add_arguments(parser, PLANNED)
    parser.add_argument(
        "--text", type=Path, help="text to measure the full-precision model on: gives perplexities, not only factors"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the plan to this file")
    return parser


def _print_plan(plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, pad_edge=False)
    titles = ["bits", "effective", "MB", "+ nats/token", "ppl factor"]
    for title in [*titles, *(["perplexity"] if plan.full_perplexity is not None else [])]:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("nats, log scale", no_wrap=True)
    bars = _bars([row.loss_increase for row in plan.rows], ascii_only=console.options.ascii_only)
    for row, bar in zip(plan.rows, bars, strict=True):
        cells = [
            f"{row.bits:.2f}",
            f"{row.effective_bits:.3f}",
            f"{row.nbytes / 1e6:.2f}",
            f"{row.loss_increase:.4f}",
            f"{row.perplexity_factor:.4g}",
            *([] if row.perplexity is None else [f"{row.perplexity:.4g}"]),
        ]
        table.add_row(*cells, bar)
    console.print(table)
    if plan.full_perplexity is not None:
        console.print(f"perplexity in full precision, measured: {plan.full_perplexity:.4g}", highlight=False)
    console.print(NOTE, soft_wrap=True, highlight=False)


def _bars(values: Sequence[float], ascii_only: bool) -> list[str]:
    """One bar for each value: the full width for the largest, an eighth for the smallest, logarithmic between."""
    logs = [math.log(max(value, 1e-12)) for value in values]
    low, span = min(logs), max(logs) - min(logs)
    bars = []
    for value in logs:
        share = 1.0 if span == 0 else 1 / 8 + 7 / 8 * (value - low) / span
        full, eighths = divmod(round(8 * BAR_WIDTH * share), 8)
        bars.append("#" * full if ascii_only else EIGHTHS[8] * full + EIGHTHS[eighths].strip())
    return bars
