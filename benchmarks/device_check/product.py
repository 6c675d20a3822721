"""`python benchmarks product`: launches one product a few times, for a profiler to look at."""

from __future__ import annotations

import argparse

import numpy as np
from cuda_benchmark import WIDTHS, packed_contender

from device_check.target import Target
from skim_runtime.measure.options import at_least, parse_shape

__all__ = ["add_arguments", "run"]

LAUNCHES = 8  # at least: a profiler leaves out the first ones


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--shape", default="14336x4096", metavar="NxK", help="of the layer (%(default)s)")
    parser.add_argument("--width", default="3 bits", choices=WIDTHS, help="of its rows (%(default)s)")
    parser.add_argument("--tokens", type=int, default=1, metavar="M", help="%(default)s")
    parser.add_argument("--stand-in", action="store_true", help="on the CPU")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Launch; nothing is printed."""
    at_least("--tokens", 1, args.tokens)
    target, shape = Target(stand_in=args.stand_in), parse_shape(args.shape)
    contender = packed_contender(args.width, np.random.default_rng(0), shape, target.kernels, target.device)
    target.device.seconds(contender.call(args.tokens), -(-LAUNCHES // contender.copies))
