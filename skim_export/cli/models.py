"""The command `skim-export models`: the recipes, with what an export of each takes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skim_runtime.command import run_command
from skim_runtime.measure.report import check_json, report_head, save_json
from skim_runtime.measure.tables import count, say, text_table

__all__ = ["HEADINGS", "cells", "main"]

HEADINGS = ("alias", "model", "licence", "parameters", "bits", "size, GB", "disk, GB", "memory, GB", "with --calib")
NOTE = (
    "bits: the default; size: of the exported model at these; disk and memory: what the export takes on this machine, "
    "beside the download of about 2 bytes a parameter; with --calib: memory, if the model is given a text to "
    "calibrate on and writes none. All follow from the recipes' shapes: nothing was downloaded.\n"
    "not yet: the architecture is not supported. gated: accept the licence on the Hugging Face Hub, then hf auth login."
)


def main(argv: Sequence[str]) -> int:
    """`skim-export models`: list the models that have an alias; returns the exit code."""

    def command() -> None:
        args = _parser().parse_args(argv)
        check_json(args.json)
        # Imported late: --help should not wait for torch.
        from skim_export.pipeline.recipe_sizes import recipe_sizes

        found = [one.as_json() for one in recipe_sizes()]
        say(text_table(HEADINGS, [cells(one) for one in found], left=3), NOTE)
        save_json(args.json, {**report_head(), "models": found})

    return run_command("skim-export models", command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skim-export models",
        description="List the models that have an alias, with what an export of each takes.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the list to this file")
    return parser


def cells(model: Mapping[str, Any]) -> list[str]:
    """A line of the table, of a model as the JSON file has it."""
    sizes = model["sizes"] or {}
    nbytes = [sizes[name] for name in ("output", "disk", "memory", "memory_given_text") if sizes]
    return [
        model["alias"],
        model["title"],
        model["licence"] + (", gated" if model["gated"] else ""),
        count(model["parameters"]),
        f"{model['bits']:g}",
        *([f"{n / 1e9:.2f}" for n in nbytes] or ["not yet", "", "", ""]),
    ]
