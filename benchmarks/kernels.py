"""Milliseconds of one linear layer inside onnxruntime, every width of ours against onnxruntime's own operators.

What is measured: skim_export/measure/sessions.py says it. A time is that of a call divided by the number of copies.
From 32 tokens on, arithmetic takes longer than reading, and one copy is enough.

What it costs to run a node that does nothing, the share of the call included, is measured the same way and printed.

All sessions live in one process and take turns, those that only read memory among them
(skim_runtime/measure/bandwidth.py). Threads are woken once a call, and a call has many nodes.

Each contender is compared with numpy before it is timed.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from skim_export.measure.random_layers import dense_layer, model_of_nothing, nbits_layer, packed_layer
from skim_export.measure.sessions import (
    MANY_TOKENS,
    Contender,
    LayerSession,
    activations,
    bound_call,
    cold_layers,
)
from skim_export.work.resources import available_memory
from skim_runtime.errors import UserError
from skim_runtime.library import kernel_name, library_path
from skim_runtime.measure.bandwidth import Bandwidth, best_reading, faster, readers
from skim_runtime.measure.options import at_least, parse_shape
from skim_runtime.measure.report import last_level_cache, report_head, save_json
from skim_runtime.measure.rounds import mean_seconds, take_turns
from skim_runtime.measure.session import open_session
from skim_runtime.measure.tables import number, say, text_table
from skim_runtime.progress import Progress
from skim_runtime.progress_bar import ProgressBar

__all__ = ["WIDTHS", "Row", "add_arguments", "run", "width_name"]

COLUMNS = 64  # columns must be a multiple: the blocks of the 2-bit operator
COLD = 3  # times the last-level cache
COPIES = 3  # of all weights in memory: in the model, in the session, and what the session rounds up
NOTHING_NODES = 256
LUT_ROWS = 128  # onnxruntime takes its table path only for multiples of these


# What `--bits` takes: the share of rows of each class (docs/format.md).
WIDTHS: dict[str, dict[int, float]] = {
    **{str(bits): {bits - 1: 1.0} for bits in range(1, 9)},
    "7-affine": {14: 1.0},
    "8-affine": {15: 1.0},
    **{f"{bits}-windows": {number: 1.0} for bits, number in enumerate((17, 19, 20, 21), start=1)},
    "mixed-3": {1: 0.25, 2: 0.5, 3: 0.25},
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        shape: NxK.
        threads: threads of the session.
        tokens: M.
        contender: name of what was measured.
        level: its accuracy level.
        nbytes: bytes of the weights, scales and codebooks included.
        copies: nodes with weights of their own in one call.
        error: relative error against numpy.
        milliseconds: median over the rounds.
        fastest: the fastest round.
        gigabytes_per_second: of weights.
        bandwidth_share: the same over the bandwidth: what as many threads read in the best of all rounds.
        to_nbits4: how many times as fast as MatMulNBits with 4 bits at level 4.
        to_lut2: how many times as fast as MatMulNBits with 2 bits and `mlas.use_lut_gemm`.
    """

    shape: str
    threads: int
    tokens: int
    contender: str
    level: int | None
    nbytes: int
    copies: int
    error: float
    milliseconds: float
    fastest: float
    gigabytes_per_second: float
    bandwidth_share: float
    to_nbits4: float | None
    to_lut2: float | None


NBITS4 = Contender("MatMulNBits 4 bits", 4, lambda random, n, k: nbits_layer(random, n, k, 4, 32))
LUT2 = Contender(
    "MatMulNBits 2 bits, LUT",
    4,
    lambda random, n, k: nbits_layer(random, n, k, 2, 64),
    (("mlas.use_lut_gemm", "1"),),
)
OTHERS = [
    NBITS4,
    Contender(NBITS4.name, 0, NBITS4.layer),
    LUT2,
    Contender("MatMul float32", None, dense_layer),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--shapes", nargs="+", default=["14336x4096"], metavar="NxK", help="default: 14336x4096")
    parser.add_argument("--bits", nargs="+", default=list(WIDTHS), choices=list(WIDTHS), help="default: all")
    parser.add_argument("--levels", nargs="+", type=int, default=[4, 0], choices=[4, 0], help="accuracy levels of ours")
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 4, 8, 128], metavar="M", help="default: 1 4 8 128")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="T", help="default: 1 2")
    parser.add_argument("--rounds", type=int, default=7, help="medians are over so many (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.05, help="of one contender in a round (%(default)s)")
    parser.add_argument(
        "--cold-mb", type=float, metavar="MB", help=f"weights read in turn; default: {COLD} times the last-level cache"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a JSON file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure and print a table for each shape, number of threads and number of tokens."""
    shapes = {shape: parse_shape(shape, COLUMNS) for shape in args.shapes}
    at_least("--tokens", 1, *args.tokens)
    at_least("--threads", 1, *args.threads)
    at_least("--rounds", 1, args.rounds)
    if not args.seconds >= 0:
        raise UserError(f"--seconds {args.seconds}: must be at least 0")
    if args.cold_mb is not None and not args.cold_mb > 0:
        raise UserError(f"--cold-mb {args.cold_mb}: must be positive")
    cold = COLD * last_level_cache() if args.cold_mb is None else int(args.cold_mb * 1e6)
    contenders = [_ours(bits, level) for level in args.levels for bits in args.bits] + OTHERS
    _check_memory(cold, len(contenders))
    library, kernel = library_path(), kernel_name()

    report: dict[str, Any] = {
        **report_head(),
        "kernel": kernel,
        "cold_bytes": cold,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "bandwidth": {},
        "nothing_microseconds": {},
        "rows": [],
    }
    save_json(args.json, report)
    for threads in dict.fromkeys(args.threads):
        nothing = report["nothing_microseconds"][threads] = 1e6 * _nothing(threads, args.rounds)
        say(f"{threads} threads: a node that does nothing takes {nothing:.2f} us")
    found: list[Row] = []
    for threads in dict.fromkeys(args.threads):
        reading = readers(threads, max(2 * cold, 1 << 20), args.seconds)
        bandwidth: Bandwidth | None = None
        for shape, (rows, columns) in shapes.items():
            for few in (True, False):
                tokens = [m for m in dict.fromkeys(args.tokens) if (m < MANY_TOKENS) == few]
                if not tokens:
                    continue
                with ProgressBar() as progress:
                    entries = _enter(contenders, rows, columns, cold if few else 1, threads, library, progress)
                    for m in tokens:
                        times, read = _take_turns(entries, reading, m, args.rounds, args.seconds, progress)
                        bandwidth = faster(bandwidth, best_reading(read))
                        found += _rows(shape, threads, m, entries, times)
                assert bandwidth is not None  # there are tokens
                found = [_with_bandwidth(row, bandwidth) if row.threads == threads else row for row in found]
                report["bandwidth"][threads] = asdict(bandwidth)
                report["rows"] = [asdict(row) for row in found]
                save_json(args.json, report)
        assert bandwidth is not None
        title = f"kernel {kernel}; {bandwidth.bytes_per_second / 1e9:.1f} GB/s read by {bandwidth.way}"
        for key in dict.fromkeys((row.shape, row.tokens) for row in found):
            table = [row for row in found if (row.shape, row.tokens, row.threads) == (*key, threads)]
            say(_printed(table, f"{key[0]}, {key[1]} tokens, {threads} threads, {title}"))


def _check_memory(cold: int, contenders: int) -> None:
    need, available = COPIES * cold * contenders, available_memory()
    if available is not None and need > available:
        raise UserError(
            f"{contenders} contenders with {cold / 1e6:.0f} MB of weights need about {need / 1e9:.0f} GB of memory, "
            f"and {available / 1e9:.0f} GB are available: give fewer --bits or --levels, or a smaller --cold-mb"
        )


def width_name(bits: str) -> str:
    """What tables call a key of `WIDTHS`."""
    return f"{bits} bits" if bits.isdigit() else "2, 3 and 4 bits" if bits == "mixed-3" else bits.replace("-", " bits ")


def _ours(bits: str, level: int) -> Contender:
    return Contender(width_name(bits), level, lambda random, n, k: packed_layer(random, n, k, WIDTHS[bits]))


def _enter(
    contenders: Sequence[Contender],
    rows: int,
    columns: int,
    cold: int,
    threads: int,
    library: Path,
    progress: Progress,
) -> list[LayerSession]:
    entries = []
    progress.start("loading", len(contenders))
    for i, contender in enumerate(contenders):
        if contender is not LUT2 or rows % LUT_ROWS == 0:
            layers = cold_layers(contender.layer, rows, columns, cold, seed=i)
            entries.append(LayerSession(contender, layers, (rows, columns), threads, library))
        progress.step(contender.name)
    progress.finish()
    return entries


def _take_turns(
    entries: Sequence[LayerSession],
    reading: Mapping[str, Callable[[], float]],
    tokens: int,
    rounds: int,
    seconds: float,
    progress: Progress,
) -> tuple[list[list[float]], dict[str, list[float]]]:
    """Seconds of one node by contender and round, and bytes per second by way to read and round."""
    contenders: dict[int | str, Callable[[], float]] = {
        i: partial(mean_seconds, entry.call(tokens), seconds) for i, entry in enumerate(entries)
    }
    found = take_turns({**contenders, **reading}, rounds, progress, f"{tokens} tokens")
    times = [[time / entry.copies for time in found[i]] for i, entry in enumerate(entries)]
    return times, {way: found[way] for way in reading}


def _nothing(threads: int, rounds: int) -> float:
    """Seconds of a node that does nothing."""
    session = open_session(model_of_nothing(NOTHING_NODES), threads, None, ())
    call = bound_call(session, activations(1, 1), (1, 1))
    return statistics.median(mean_seconds(call, 0.01) for _ in range(rounds)) / NOTHING_NODES


def _rows(
    shape: str,
    threads: int,
    tokens: int,
    entries: Sequence[LayerSession],
    times: Sequence[list[float]],
) -> list[Row]:
    medians = [statistics.median(found) for found in times]
    reference = {entry.contender: median for entry, median in zip(entries, medians, strict=True)}
    nbits4, lut2 = reference[NBITS4], reference.get(LUT2)
    return [
        Row(
            shape=shape,
            threads=threads,
            tokens=tokens,
            contender=entry.contender.name,
            level=entry.contender.level,
            nbytes=entry.nbytes,
            copies=entry.copies,
            error=entry.error,
            milliseconds=1e3 * median,
            fastest=1e3 * min(found),
            gigabytes_per_second=entry.nbytes / median / 1e9,
            bandwidth_share=math.nan,  # known when everything has had its turns
            to_nbits4=nbits4 / median,
            to_lut2=None if lut2 is None else lut2 / median,
        )
        for entry, found, median in zip(entries, times, medians, strict=True)
    ]


def _with_bandwidth(row: Row, bandwidth: Bandwidth) -> Row:
    return replace(row, bandwidth_share=1e9 * row.gigabytes_per_second / bandwidth.bytes_per_second)


def _printed(rows: Sequence[Row], title: str) -> str:
    headings = ("weights", "level", "MB", "copies", "error", "ms", "fastest", "GB/s", "of bandwidth")
    cells = [
        (
            row.contender,
            number(row.level, "d"),
            f"{row.nbytes / 1e6:.2f}",
            str(row.copies),
            f"{row.error:.1e}",
            f"{row.milliseconds:.3f}",
            f"{row.fastest:.3f}",
            f"{row.gigabytes_per_second:.1f}",
            f"{row.bandwidth_share:.0%}",
            number(row.to_nbits4, ".2f"),
            number(row.to_lut2, ".2f"),
        )
        for row in rows
    ]
    return text_table((*headings, "times NBits 4", "times LUT 2"), cells, title)
