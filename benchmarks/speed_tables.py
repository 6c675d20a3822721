"""Tables of docs/results.md about speed; each is made of the reports in one or several JSON files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mixture

from skim_runtime.measure.tables import markdown_table, number

__all__ = ["TABLES"]

Report = dict[str, Any]

# The contenders of `kernels-tokens`, and their levels; those of them that were measured.
WITH_TOKENS = (
    ("3 bits", 4),
    ("8 bits affine", 4),
    ("3 bits", 0),
    ("MatMulNBits 4 bits", 4),
    ("MatMulNBits 2 bits, LUT", 4),
    ("MatMul float32", None),
)


def _kernels_decode(reports: Sequence[Report]) -> str:
    """`python benchmarks kernels`: one token, the first shape; a line for each contender."""
    (report,) = reports
    shape = report["rows"][0]["shape"]
    rows = [row for row in report["rows"] if row["tokens"] == 1 and row["shape"] == shape]
    threads = list(dict.fromkeys(row["threads"] for row in rows))
    of = {(row["contender"], row["level"], row["threads"]): row for row in rows}
    lines = []
    for name, level in dict.fromkeys((row["contender"], row["level"]) for row in rows):
        cells = []
        for count in threads:
            row = of[name, level, count]
            cells += [f"{row['milliseconds']:.3f}", f"{row['bandwidth_share']:.0%}", number(row["to_nbits4"], ".2f")]
        megabytes = f"{of[name, level, threads[0]]['nbytes'] / 1e6:.1f}"
        lut = number(of[name, level, threads[-1]]["to_lut2"], ".2f")
        lines.append((name, number(level, "d"), megabytes, *cells, lut))
    measured = [f"{_threads(count)}, {what}" for count in threads for what in ("ms", "of bandwidth", "times NBits 4")]
    table = markdown_table(("weights", "level", "MB", *measured, "times LUT 2"), lines)
    read = [
        f"{found['bytes_per_second'] / 1e9:.1f} GB/s with {_threads(int(count))}"
        for count, found in report["bandwidth"].items()
    ]
    return f"{table}\n\n{shape}, kernel {report['kernel']}. Memory alone was read at {' and '.join(read)}."


def _kernels_tokens(reports: Sequence[Report]) -> str:
    """`python benchmarks kernels`: several tokens, the first shape; milliseconds, and times NBits 4 in brackets."""
    (report,) = reports
    rows = [row for row in report["rows"] if row["shape"] == report["rows"][0]["shape"]]
    of = {(row["threads"], row["tokens"], row["contender"], row["level"]): row for row in rows}
    measured = {(row["contender"], row["level"]) for row in rows}
    contenders = [contender for contender in WITH_TOKENS if contender in measured]
    lines = []
    for threads, tokens in dict.fromkeys((row["threads"], row["tokens"]) for row in rows):
        found = [of[threads, tokens, *contender] for contender in contenders]
        cells = [f"{row['milliseconds']:.2f} ({row['to_nbits4']:.2f})" for row in found]
        lines.append((str(threads), str(tokens), *cells))
    headings = [name if level != 0 else f"{name}, level 0" for name, level in contenders]
    return markdown_table(("threads", "tokens", *headings), lines)


def _kernels_shapes(reports: Sequence[Report]) -> str:
    """`python benchmarks kernels --shapes ...`: 3 bits and one token; the last column is 8 bits with even levels."""
    (report,) = reports
    of = {
        (row["shape"], row["threads"], row["contender"]): row
        for row in report["rows"]
        if row["tokens"] == 1 and row["level"] == 4
    }
    threads = list(dict.fromkeys(count for _, count, _ in of))
    lines = []
    for shape in dict.fromkeys(shape for shape, _, _ in of):
        cells = []
        for count in threads:
            row = of[shape, count, "3 bits"]
            cells += [f"{row['milliseconds']:.3f}", number(row["to_nbits4"], ".2f"), number(row["to_lut2"], ".2f")]
        even = of[shape, threads[-1], "8 bits affine"]
        lines.append((shape.replace("x", " x "), *cells, f"{even['milliseconds']:.3f}"))
    measured = [f"{_threads(count)}, {what}" for count in threads for what in ("ms", "times NBits 4", "times LUT 2")]
    return markdown_table(("rows x columns", *measured, f"8 bits, even, {_threads(threads[-1])}, ms"), lines)


def _decode(reports: Sequence[Report]) -> str:
    """`python benchmarks decode`."""
    lines = [
        (
            Path(row["decoder"]).name,
            row["engine"],
            str(row["threads"]),
            f"{row['weight_bytes'] / 1e6:.1f}",
            f"{row['prompt_speed']:.0f}",
            number(row["prompt_ratio"], ".2f"),
            f"{row['decode_speed']:.1f}",
            number(row["decode_ratio"], ".2f"),
            f"{row['gigabytes_per_second']:.1f}",
        )
        for report in reports
        for row in report["rows"]
    ]
    speeds = ("prompt, tokens/s", "of int4", "decoding, tokens/s", "of int4", "GB/s")
    return markdown_table(("model", "engine", "threads", "MB read a token", *speeds), lines, left=2)


def _model(reports: Sequence[Report]) -> str:
    """`skim-bench --model`, a line for each file."""
    lines = []
    for report in reports:
        (row,) = report["rows"]
        lines.append(
            (
                Path(report["model"]).name,
                str(row["threads"]),
                f"{row['prompt_speed']:.0f}",
                f"{row['decode_speed']:.1f}",
                f"{row['gigabytes_per_second']:.1f}",
                f"{row['bandwidth_share']:.0%}",
                f"{row['peak_megabytes']:.0f}",
            )
        )
    speeds = ("prompt, tokens/s", "decoding, tokens/s", "GB/s", "of bandwidth", "peak MB")
    return markdown_table(("model", "threads", *speeds), lines)


def _target_kernels(reports: Sequence[Report]) -> str:
    """`skim-bench --target`, a file for each target: one token of the first shape."""
    columns, cells = [], {}
    for report in reports:
        shape = report["rows"][0]["shape"]
        for row in report["rows"]:
            if (row["shape"], row["tokens"]) == (shape, 1):
                column = f"{report['target']} {row['arithmetic']}"
                columns.append(column)
                times = f"{number(row['to_operator'], '.2f')}, {number(row['to_numpy'], '.1f')}"
                cells[row["rows"], column] = f"{row['gigaweights_per_second']:.1f}, {times}"
    columns = list(dict.fromkeys(columns))
    lines = [(rows, *(cells[rows, column] for column in columns)) for rows in dict.fromkeys(rows for rows, _ in cells)]
    return f"{markdown_table(('rows', *columns), lines)}\n\nGweights/s, times the operator, times numpy."


def _instructions(reports: Sequence[Report]) -> str:
    """`skim-bench --target` under an emulator, a file for each target: float / integer."""
    lines, rows = [], list(dict.fromkeys(count["rows"] for count in reports[0]["counts"]))
    for report in reports:
        of = {(count["rows"], count["arithmetic"]): count["instructions_per_weight"] for count in report["counts"]}
        pairs = [" / ".join(f"{of[name, arithmetic]:.2f}" for arithmetic in ("float", "integer")) for name in rows]
        lines.append((f"`{report['target']}`", *pairs))
    return markdown_table(("target", *rows), lines)


def _bundles(reports: Sequence[Report]) -> str:
    """`skim-bench --bundle`, a file for each number of threads."""
    lines = [
        (
            row["engine"],
            str(row["threads"]),
            f"{row['prompt_speed']:.0f}",
            f"{row['decode_speed']:.0f}",
            f"{row['peak_megabytes']:.0f}",
        )
        for report in reports
        for row in report["rows"]
    ]
    return markdown_table(("engine", "threads", "prompt tokens/s", "decode tokens/s", "peak MB"), lines)


def _roofline(reports: Sequence[Report]) -> str:
    """`python benchmarks roofline --columns K`: instructions on the second GPU, shares of the bandwidth on all."""
    (report,) = reports
    gpus = list(dict.fromkeys(row["gpu"] for row in report["rows"]))
    of = {(row["gpu"], row["kind"], row["bits"]): row for row in report["rows"]}
    pipes = ("issue", "ALU", "FMA", "half", "tensor", "integer tensor")
    lines = []
    for kind, bits in sorted({(row["kind"], row["bits"]) for row in report["rows"]}):
        shares = []
        for gpu in gpus:
            row = of[gpu, kind, bits]
            shares.append(f"{row['bandwidth_share']:.0%}" + ("" if row["limit"] == "bandwidth" else f" {row['limit']}"))
        counted = of[gpus[1], kind, bits]["instructions"]
        name = f"{kind}, {bits} bit{'s' * (bits > 1)}"
        lines.append((name, *(f"{counted.get(pipe, 0):.2f}" for pipe in pipes), *shares))
    return markdown_table(("rows", "instructions", *pipes[1:], *gpus), lines)


def _quantizer(reports: Sequence[Report]) -> str:
    """`python benchmarks quantizer`."""
    (report,) = reports
    rows = report["rows"]
    of = {(row["rows"], row["columns"], row["what"]): row["seconds"] for row in rows}
    steps = list(dict.fromkeys(row["what"] for row in rows))
    lines = [
        (
            str(N),
            str(K),
            *(f"{of[N, K, what]:.1f} s ({1e9 * of[N, K, what] / (N * K):.0f} ns a weight)" for what in steps),
        )
        for N, K in dict.fromkeys((row["rows"], row["columns"]) for row in rows)
    ]
    return markdown_table(("rows", "columns", *steps), lines)


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _mixtures(reports: Sequence[Report]) -> str:
    """`python benchmarks mixture`: a line for each contender, tokens and threads."""
    lines = [
        mixture.cells(row, report["sizes"]["per_token"] / report["sizes"]["experts"])
        for report in reports
        for row in report["rows"]
    ]
    return markdown_table(mixture.HEADINGS, lines)


TABLES: Mapping[str, Callable[[Sequence[Report]], str]] = {
    "kernels-decode": _kernels_decode,
    "kernels-tokens": _kernels_tokens,
    "kernels-shapes": _kernels_shapes,
    "decode": _decode,
    "model": _model,
    "target-kernels": _target_kernels,
    "instructions": _instructions,
    "bundles": _bundles,
    "roofline": _roofline,
    "quantizer": _quantizer,
    "mixtures": _mixtures,
}
