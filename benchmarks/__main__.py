"""`python -m benchmarks NAME`: one entry point for all measurements."""

from __future__ import annotations

import argparse
import sys

from benchmarks import quality
from skim_runtime.command import run_command


def main() -> int:
    """Run one benchmark and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    quality.add_arguments(names.add_parser("quality", help=quality.__doc__.splitlines()[0]))
    args = parser.parse_args()
    return run_command(f"benchmarks {args.name}", lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main())
