"""Seconds to quantize one layer of random weights, by method and shape; the cost of a weight should not grow with rows.

Everything is timed on the same weights, sensitivities and correlations, without reading or calibration.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from skim_export.measure.speed import parse_shape
from skim_export.quantize import DEFAULT_METHOD, METHODS, LinearArrays, quantize_linear
from skim_export.work.resources import Resources

__all__ = ["add_arguments", "run"]

RANDOM_TOKENS = 512  # that the correlation is made from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--shapes", nargs="+", default=["1024x4096", "4096x4096"], metavar="NxK")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["squeezellm", "skim", "gptq", "skim+"])
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    table = Table(box=None)
    for column in ("rows", "columns", "what", "seconds", "ns a weight"):
        table.add_column(column, justify="left" if column == "what" else "right")
    resources = Resources(args.threads)
    for shape in args.shapes:
        rows, columns = parse_shape(shape)
        weight, sensitivity, correlation = _random_layer(rows, columns)
        bits = np.full(rows, args.bits, np.uint8)
        started = time.perf_counter()
        widths = range(max(1, args.bits - 2), args.bits + 3)
        METHODS[DEFAULT_METHOD].width_errors(LinearArrays(weight, sensitivity), widths, resources)
        timed = [(f"error curves, {widths[0]} to {widths[-1]} bits", time.perf_counter() - started)]
        for name in args.methods:
            started = time.perf_counter()
            quantize_linear(weight, sensitivity, bits, METHODS[name], correlation=correlation, resources=resources)
            timed.append((name, time.perf_counter() - started))
        for what, seconds in timed:
            table.add_row(str(rows), str(columns), what, f"{seconds:.1f}", f"{1e9 * seconds / weight.size:.0f}")
    Console(width=100).print(table)


def _random_layer(
    rows: int, columns: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weights and sensitivities `[rows, columns]` with heavy tails, and a correlation `[columns, columns]`."""
    rng = np.random.default_rng(0)
    weight = (0.02 * rng.standard_t(5, (rows, columns))).astype(np.float32)
    sensitivity = np.exp(rng.normal(-8, 1.5, (rows, columns))).astype(np.float32)
    inputs = rng.normal(size=(RANDOM_TOKENS, columns)).astype(np.float32)
    inputs[:, 1:] += inputs[:, :-1]  # neighbours go together
    moments = inputs.T @ inputs
    spread = np.sqrt(np.diag(moments))
    return weight, sensitivity, (moments / spread / spread[:, None]).astype(np.float32)
