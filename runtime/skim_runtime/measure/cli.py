"""The command `skim-bench`: a model measured here; kernels and bundles of devices are left to skim-export."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skim_runtime.command import run_command
from skim_runtime.errors import UserError
from skim_runtime.extensions import extension

if TYPE_CHECKING:
    from skim_runtime.measure.model import ModelSpeed

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """`skim-bench`: measure a model, or what an installed skim-export can measure; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    code = 0

    def run() -> None:
        nonlocal code
        if option := _device_option(arguments):
            code = extension("bench", f"skim-bench {option}")(arguments)
        else:
            _measure(_parser().parse_args(arguments))

    return run_command("skim-bench", run) or code


def _device_option(arguments: Sequence[str]) -> str | None:
    """The option that asks for more than the runtime has."""
    parser = argparse.ArgumentParser(add_help=False)
    _add_device_arguments(parser)
    known, _ = parser.parse_known_args(arguments)
    return next((f"--{name}" for name, value in vars(known).items() if value is not None), None)


def _add_device_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--target", metavar="TARGET", help="kernels of a target; skim-bench --target rpi5 --help")
    parser.add_argument("--bundle", metavar="DIR", help="a device bundle, beside the --model that it was made of")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skim-bench",
        description="Measure a model that skim-export wrote: speed of prompt and decoding, weights read per second and "
        "their share of what memory allows, peak memory.",
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="directory that skim-export wrote")
    parser.add_argument("--threads", type=int, metavar="T", help="default: one for each core")
    parser.add_argument("--prompt", type=int, default=128, metavar="N", help="tokens of the prompt (%(default)s)")
    parser.add_argument("--new", type=int, default=64, metavar="N", help="tokens to generate (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="medians are over so many (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a JSON file")
    _add_device_arguments(parser.add_argument_group("devices, with the package skim-export, which has more options"))
    return parser


def _measure(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from skim_runtime.measure.model import measure_model
    from skim_runtime.measure.options import at_least
    from skim_runtime.measure.report import report_head, save_json
    from skim_runtime.measure.tables import say
    from skim_runtime.progress_bar import ProgressBar

    if args.model is None:
        raise UserError("nothing to measure: give --model DIR, --target or --bundle DIR")
    threads = len(os.sched_getaffinity(0)) if args.threads is None else args.threads
    at_least("--threads", 1, threads)
    at_least("--prompt", 1, args.prompt)
    at_least("--new", 2, args.new)
    at_least("--rounds", 1, args.rounds)
    settings = {"model": str(args.model), "prompt": args.prompt, "new": args.new, "rounds": args.rounds}
    report = {**report_head(), **settings}
    save_json(args.json, {**report, "rows": []})
    with ProgressBar() as progress:
        speed = measure_model(args.model, threads, args.prompt, args.new, args.rounds, progress)
    save_json(args.json, {**report, "rows": [asdict(speed)]})
    say(_table(speed, f"{args.model}: prompt of {args.prompt} tokens, {args.new} new ones, medians of {args.rounds}"))


def _table(speed: ModelSpeed, title: str) -> str:
    from skim_runtime.measure.tables import text_table

    cells = {
        "kernel": speed.kernel,
        "threads": str(speed.threads),
        "prompt tokens/s": f"{speed.prompt_speed:.1f}",
        "decode tokens/s": f"{speed.decode_speed:.1f}",
        "GB/s of weights": f"{speed.gigabytes_per_second:.2f}",
        "of bandwidth": f"{speed.bandwidth_share:.0%}",
        "peak MB": f"{speed.peak_megabytes:.0f}",
    }
    read = f"memory alone: {speed.bandwidth.bytes_per_second / 1e9:.1f} GB/s, read by {speed.bandwidth.way}"
    return f"{text_table(list(cells), [list(cells.values())], title)}\n{read}"
