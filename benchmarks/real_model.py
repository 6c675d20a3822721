"""A real model, exported at some widths and compared with itself as distributed: quality, time, memory, an answer.

Everything is done by the commands that users have, each in a process of its own. An export that is there already is
not made again; what it took stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from skim_runtime.errors import UserError
from skim_runtime.measure.report import check_json, report_head, save_json
from skim_runtime.measure.tables import say, text_table
from skim_runtime.verification import REPORT_NAME

__all__ = ["HEADINGS", "add_arguments", "cells", "run"]

BIN = Path(sys.executable).parent
QUESTION = "What is the capital of France?"
TAKEN = "taken.json"  # beside an export's directory
HEADINGS = ("model", "bits", "MB", "perplexity", "as distributed", "KL, nats", "same first token", "minutes", "GB")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--model", required=True, help="what skim-export takes, e.g. a GGUF file")
    parser.add_argument("--bits", type=float, nargs="+", default=[3, 4], help="default: 3 4")
    parser.add_argument("--calib", type=Path, required=True, metavar="FILE", help="text to calibrate on")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="text to evaluate on")
    parser.add_argument("--tokens", type=int, default=4096, help="of the text; default: 4096")
    parser.add_argument("--prompt", default=QUESTION, help=f"to be answered; default: {QUESTION}")
    parser.add_argument("--raw", action="store_true", help="take the prompt as it is, for models that do not chat")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="where the exports go")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Export, evaluate, ask, print."""
    check_json(args.json)
    found = [_measured(args, bits) for bits in args.bits]
    say(text_table(HEADINGS, [cells(row) for row in found]))
    for row in found:
        say(f"{row['bits']:g} bits: {row['prompt']} -> {row['answer']}")
    save_json(args.json, {**report_head(), "models": found})


def cells(row: dict[str, Any]) -> list[str]:
    """A line of the table."""
    found = row["evaluation"]
    return [
        row["model"],
        f"{row['bits']:g}",
        f"{row['bytes'] / 1e6:.0f}",
        f"{found['perplexity']:.2f} ± {found['perplexity_error']:.2f}",
        f"{found['reference_perplexity']:.2f} ± {found['reference_perplexity_error']:.2f}",
        f"{found['kl_mean']:.3f}",
        f"{found['top1_agreement']:.1%}",
        f"{row['seconds'] / 60:.0f}",
        f"{row['peak_bytes'] / 1e9:.1f}",
    ]


def _measured(args: argparse.Namespace, bits: float) -> dict[str, Any]:
    name = Path(args.model).stem
    directory = args.output / f"{name}-{bits:g}bit"
    taken = directory.with_name(f"{directory.name}.{TAKEN}")
    if not ((directory / REPORT_NAME).is_file() and taken.is_file()):
        export = ["skim-export", "--model", args.model, "--bits", f"{bits:g}", "--calib", args.calib, "--force"]
        seconds, peak = _timed([*export, "-o", directory / "model.onnx"])
        taken.write_text(json.dumps({"seconds": seconds, "peak_bytes": peak}))
    evaluate = ["skim-eval", directory, "--text", args.text, "--tokens", args.tokens, "--reference", args.model]
    answer = _output(["skim-run", directory, args.prompt, "--max-new-tokens", 48, *(["--raw"] if args.raw else [])])
    return {
        "model": name,
        "bits": bits,
        "bytes": sum(file.stat().st_size for file in directory.glob("model.onnx*")),
        "evaluation": json.loads(_output([*evaluate, "--json"])),
        "prompt": args.prompt,
        "answer": answer.strip(),
        **json.loads(taken.read_text()),
    }


def _timed(command: list[Any]) -> tuple[float, int]:
    """Seconds that a command takes, and its largest resident memory in bytes."""
    started = time.monotonic()
    child = subprocess.Popen(_argv(command))
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    _check(command, child.returncode)
    # The peak starts at this process's own, which is far below that of any export.
    return time.monotonic() - started, usage.ru_maxrss * 1024


def _output(command: list[Any]) -> str:
    done = subprocess.run(_argv(command), stdout=subprocess.PIPE, text=True, check=False)
    _check(command, done.returncode)
    return done.stdout


def _argv(command: list[Any]) -> list[str]:
    return [str(BIN / command[0]), *map(str, command[1:])]


def _check(command: list[Any], code: int) -> None:
    if code:
        raise UserError(f"{' '.join(map(str, command))}: ended with {code}")
