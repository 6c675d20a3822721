"""The command `skim-export verify`: whether an exported directory is as it was written."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from skim_runtime.command import run_command
from skim_runtime.progress_bar import ProgressBar
from skim_runtime.verification import verify

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """`skim-export verify`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="skim-export verify",
        description="Compare the files of an exported directory with the sizes and hashes in its export.json.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="directory that skim-export wrote")
    args = parser.parse_args(argv)

    def command() -> None:
        with ProgressBar() as progress:
            files = verify(args.directory, progress=progress)
        size = sum(file.stat().st_size for file in files)
        print(f"{args.directory}: {len(files)} files, {size / 1e6:.1f} MB, are as they were written")  # noqa: T201

    return run_command("skim-export verify", command)
