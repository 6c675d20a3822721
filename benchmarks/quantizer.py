"""Seconds to quantize one layer of random weights, by method and shape; the cost of a weight should not grow with rows.

Everything is timed on the same weights, sensitivities and correlations, without reading or calibration.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skim_export.quantize import DEFAULT_METHOD, METHODS, LinearArrays, quantize_linear
from skim_export.work.resources import Resources
from skim_runtime.measure.options import parse_shape
from skim_runtime.measure.report import report_head, save_json
from skim_runtime.measure.tables import say, text_table

__all__ = ["add_arguments", "random_layer", "run"]

RANDOM_TOKENS = 512  # that the correlation is made from


@dataclass(frozen=True)
class Row:
    """What one step took.

    Attributes:
        rows: N.
        columns: K.
        what: the method, or the error curves that bits are allocated by.
        seconds: of all weights.
    """

    rows: int
    columns: int
    what: str
    seconds: float

    @property
    def nanoseconds_per_weight(self) -> float:
        """The same for one weight."""
        return 1e9 * self.seconds / (self.rows * self.columns)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--shapes", nargs="+", default=["1024x4096", "4096x4096"], metavar="NxK")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["squeezellm", "skim", "gptq", "skim+"])
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a JSON file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    resources = Resources(args.threads)
    report = {**report_head(), "bits": args.bits, "threads": args.threads}
    found: list[Row] = []
    for shape in args.shapes:
        rows, columns = parse_shape(shape)
        weight, sensitivity, correlation = random_layer(rows, columns)
        bits = np.full(rows, args.bits, np.uint8)
        started = time.perf_counter()
        widths = range(max(1, args.bits - 2), args.bits + 3)
        METHODS[DEFAULT_METHOD].width_errors(LinearArrays(weight, sensitivity), widths, resources)
        timed = [(f"error curves, {widths[0]} to {widths[-1]} bits", time.perf_counter() - started)]
        for name in args.methods:
            started = time.perf_counter()
            quantize_linear(weight, sensitivity, bits, METHODS[name], correlation=correlation, resources=resources)
            timed.append((name, time.perf_counter() - started))
        found += [Row(rows, columns, what, seconds) for what, seconds in timed]
        save_json(args.json, {**report, "rows": [asdict(row) for row in found]})
    cells = [
        (row.what, str(row.rows), str(row.columns), f"{row.seconds:.1f}", f"{row.nanoseconds_per_weight:.0f}")
        for row in found
    ]
    say(text_table(("what", "rows", "columns", "seconds", "ns a weight"), cells))


def random_layer(
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
