"""`make fuzz`: try many inputs of every kind, and print what is found; exits with 1 if that is anything."""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial

from .inputs import try_inputs
from .native import try_bundles, try_operators

KINDS = {
    "operators": (1_000_000, try_operators),
    "directories": (10_000, partial(try_inputs, "directories")),
    "bundles": (10_000, try_bundles),
    "checkpoints": (1_000, partial(try_inputs, "checkpoints")),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Try inputs with something wrong in them."
    )
    parser.add_argument("--only", choices=KINDS, nargs="+", default=list(KINDS), help="default: all kinds")
    parser.add_argument("--seed", type=int, default=1, help="of the inputs (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first input")
    parser.add_argument("--count", type=int, metavar="N", help="of inputs; by default it takes minutes")
    arguments = parser.parse_args()
    findings = 0
    for kind in arguments.only:
        usual, attempt = KINDS[kind]
        started = time.monotonic()
        result = attempt(arguments.seed, arguments.first, arguments.count or usual)
        findings += len(result.findings)
        print(  # noqa: T201
            f"{kind}: seed {arguments.seed}, {result.inputs} inputs in {time.monotonic() - started:.0f} s, "
            f"{result.accepted} accepted, {len(result.findings)} findings",
            *result.findings,
            sep="\n  ",
            flush=True,
        )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
