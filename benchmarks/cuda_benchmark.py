"""Microseconds of one linear layer on a GPU: packed weights of several widths against cuBLAS and MatMulNBits.

Needs torch built for CUDA, numpy and nvcc, and of this project nothing but the source tree. First the kernels are
compiled for the GPU that is there and compared with float64 on a grid of cases; if they are right, they are timed.

A time is that of a CUDA graph over its layers. The graph has so many of them, each with weights and activations of its
own, that the weights are more than three times what the last-level cache holds. Contenders take turns; what is printed
are medians over the rounds. Without a graph the same kernels are launched one by one from Python.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from cuda_build import Nvcc
from cuda_check import TYPE_BOUNDS, Tally, cases, check, fits
from cuda_contenders import Contender, Dense, NBits, Packed, why_no_nbits
from cuda_device import Device, Gpu, Kernels
from cuda_library import CudaLibrary
from cuda_speed import Row, read_bandwidth, take_turns

from skim_export.measure.random_linear import random_linear
from skim_runtime.errors import UserError
from skim_runtime.measure.options import at_least, parse_shape
from skim_runtime.measure.report import report_head, save_json
from skim_runtime.measure.tables import markdown_table, number, say, write_markdown

__all__ = ["WIDTHS", "add_arguments", "check_all", "measure", "packed_contender", "run"]

# Products of a decoder's block; query, key and value are one matrix, gate and up have one shape.
SHAPES = {
    "6144x4096": "Mistral-7B, query, key and value",
    "4096x4096": "Mistral-7B, output of attention",
    "14336x4096": "Mistral-7B, gate",
    "4096x14336": "Mistral-7B, down",
    "10240x8192": "Llama-3-70B, query, key and value",
    "8192x8192": "Llama-3-70B, output of attention",
    "28672x8192": "Llama-3-70B, gate",
    "8192x28672": "Llama-3-70B, down",
    "128256x4096": "Llama-3-8B, output head",
}
TOKENS = (1, 2, 4, 8, 16, 128, 512, 2048)
# What is measured: the share of rows of each class (docs/format.md).
WIDTHS: dict[str, dict[int, float]] = {
    "2 bits": {1: 1.0},
    "3 bits": {2: 1.0},
    "3 bits in floats": {2: 1.0},
    "2, 3 and 4 bits": {1: 0.25, 2: 0.5, 3: 0.25},
    "4 bits": {3: 1.0},
    "6 bits": {5: 1.0},
    "8 bits": {7: 1.0},
    "8 bits, even": {15: 1.0},
}
IN_FLOATS = " in floats"  # with which names end whose activations stay what they are; exports have integers by default
CONTENDER_SECONDS = 0.02  # of one contender in a round
MULTIPLE = 32  # columns must be: the blocks of MatMulNBits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--check", action="store_true", help="only compare the kernels with float64")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="NxK", help="default: those of 7B and 70B")
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS, metavar="M", help="default: 1 to 2048")
    parser.add_argument("--rounds", type=int, default=7, help="medians are over so many (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a JSON file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables to a Markdown file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compile, check, and measure on the GPU."""
    shapes = {shape: parse_shape(shape, MULTIPLE) for shape in args.shapes}
    at_least("--tokens", 1, *args.tokens)
    at_least("--rounds", 1, args.rounds)
    gpu = Gpu()
    kernels = Kernels(CudaLibrary(Nvcc().library(gpu.architecture)), gpu)
    check_all(kernels, gpu)
    if not args.check:
        measure(shapes, args.tokens, args.rounds, kernels, gpu, args.json, args.markdown)


def check_all(kernels: Kernels, device: Device) -> None:
    """Run the grid, print what is wrong, and exit with code 1 if anything is."""
    tally = Tally()
    for case in cases():
        if fits(case, device):
            tally.add(case, check(case, kernels, device))
    for dtype, count in tally.counts.items():
        say(f"{device.name}, {dtype}: {count} cases, largest relative error {tally.largest[dtype]:.1e}")
    if tally.wrong:
        say(f"{len(tally.wrong)} cases are wrong")
        sys.exit(1)


def measure(
    shapes: Mapping[str, tuple[int, int]],
    tokens: Sequence[int],
    rounds: int,
    kernels: Kernels,
    device: Device,
    json: Path | None,
    markdown: Path | None,
    widths: Collection[str] = WIDTHS.keys(),
) -> None:
    """Time every shape with `widths`, and print and write the tables as they are ready.

    Raises:
        UserError: products were off by more than rounding explains; all figures are written all the same.
    """
    bandwidth = read_bandwidth(device)
    report: dict[str, Any] = {
        **report_head(),
        "device": device.facts(),
        "bandwidth": asdict(bandwidth),
        "rounds": rounds,
        "seconds": CONTENDER_SECONDS,
        "rows": [],
    }
    wrong: list[Row] = []
    no_nbits = why_no_nbits(device.provider)
    text = [f"{device.name}: {bandwidth.bytes_per_second / 1e9:.0f} GB/s read by {bandwidth.way}."]
    if no_nbits is not None:
        text.append(f"{NBits.name}: not measured, {no_nbits}.")
    say(*text)
    for name, shape in shapes.items():
        contenders = list(_contenders(shape, widths, kernels, device, with_nbits=no_nbits is None))
        rows: list[Row] = []
        for m in dict.fromkeys(tokens):
            found = take_turns(contenders, shape, m, device, bandwidth, rounds, CONTENDER_SECONDS)
            rows += found
            report["rows"] += [asdict(row) for row in found]
            save_json(json, report)
        wrong += [row for row in rows if row.contender in WIDTHS and not row.error < TYPE_BOUNDS["float16"]]
        text.append(_table(f"{name} ({SHAPES[name]})" if name in SHAPES else name, rows))
        say(text[-1])
        write_markdown(markdown, text)
    if wrong:  # the figures of a wrong result are worth nothing
        row = wrong[0]
        raise UserError(
            f"{len(wrong)} products are wrong: {row.shape}, {row.contender}, M = {row.tokens}: off by {row.error:.2g}"
        )


def packed_contender(
    name: str, random: np.random.Generator, shape: tuple[int, int], kernels: Kernels, device: Device
) -> Packed:
    """A random layer of a width."""
    layer = random_linear(random, *shape, WIDTHS[name])
    return Packed(name, layer, kernels, device, integers=not name.endswith(IN_FLOATS))


def _contenders(
    shape: tuple[int, int], widths: Collection[str], kernels: Kernels, device: Device, with_nbits: bool
) -> Iterator[Contender]:
    random = np.random.default_rng(0)
    for i, name in enumerate(widths):
        packed = packed_contender(name, random, shape, kernels, device)
        yield packed
        if i == 0:
            yield Dense(packed.weight(), device)
    if with_nbits:
        yield NBits(*shape, device)


def _table(title: str, rows: Sequence[Row]) -> str:
    headings = ("M", "us", "fastest", "launched", "TFLOP/s", "GB/s", "of bandwidth", "times cuBLAS", "error")
    lines = [
        (
            row.contender,
            str(row.tokens),
            f"{row.microseconds:.2f}",
            f"{row.fastest:.2f}",
            number(row.launched_microseconds, ".2f"),
            f"{row.teraflops:.1f}",
            f"{row.gigabytes_per_second:.0f}",
            f"{row.bandwidth_share:.0%}",
            f"{row.to_cublas:.2f}",
            f"{row.error:.1e}",
        )
        for row in rows
    ]
    return f"{title}\n\n{markdown_table(('weights', *headings), lines)}"
