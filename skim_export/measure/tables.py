"""The tables that skim-bench prints."""

from __future__ import annotations

from collections.abc import Sequence

from skim_export.measure.emulated import Count
from skim_export.measure.kernels import Row
from skim_export.measure.models import ModelRow
from skim_runtime.measure.tables import number, say, text_table

__all__ = ["print_counts", "print_models", "print_not_measured", "print_rows"]


def print_not_measured(reasons: Sequence[str]) -> None:
    """What is missing in the tables."""
    for reason in reasons:
        say(f"not measured: {reason}")


def print_rows(rows: Sequence[Row], title: str) -> None:
    """A table for each shape and number of tokens."""
    for shape, tokens in dict.fromkeys((row.shape, row.tokens) for row in rows):
        of_table = [row for row in rows if (row.shape, row.tokens) == (shape, tokens)]
        threads = of_table[0].threads
        speeds = ("ms", "fastest", "Gweights/s", "GB/s", "GFLOP/s")
        headings = ("rows", "arithmetic", *speeds, "operator ms", "times", "numpy ms", "times")
        cells = [
            (
                row.rows,
                row.arithmetic,
                f"{row.milliseconds:.3f}",
                f"{row.fastest:.3f}",
                f"{row.gigaweights_per_second:.2f}",
                f"{row.gigabytes_per_second:.2f}",
                f"{row.gigaflops:.1f}",
                number(row.operator_milliseconds, ".3f"),
                number(row.to_operator, ".2f"),
                number(row.numpy_milliseconds, ".3f"),
                number(row.to_numpy, ".2f"),
            )
            for row in of_table
        ]
        say(text_table(headings, cells, f"{shape}, {tokens} tokens, {threads} threads, {title}", left=2))


def print_counts(counts: Sequence[Count], title: str) -> None:
    """One table, a line for each shape and row class."""
    columns = list(dict.fromkeys((count.arithmetic, count.tokens) for count in counts))
    headings = [f"{arithmetic} M={tokens}" for arithmetic, tokens in columns]
    lines = []
    for shape, rows in dict.fromkeys((count.shape, count.rows) for count in counts):
        found = {(c.arithmetic, c.tokens): c for c in counts if (c.shape, c.rows) == (shape, rows)}
        cells = [number(found[column].instructions_per_weight, ".3f") for column in columns]
        lines.append((shape, rows, *cells, f"{max(count.error for count in found.values()):.1e}"))
    say(text_table(("shape", "rows", *headings, "largest error"), lines, title, left=2))


def print_models(rows: Sequence[ModelRow], title: str) -> None:
    """A line for each engine, and how long they agree."""
    headings = ("engine", "prompt tokens/s", "decode tokens/s", "peak MB", "weights MB", "code MB")
    cells = [
        (
            row.engine,
            f"{row.prompt_speed:.1f}",
            f"{row.decode_speed:.1f}",
            f"{row.peak_megabytes:.1f}",
            f"{row.weight_megabytes:.1f}",
            f"{row.code_megabytes:.2f}",
        )
        for row in rows
    ]
    say(text_table(headings, cells, title))
    if len(rows) > 1:
        say(f"the first {_common(*(row.tokens for row in rows))} of {len(rows[0].tokens)} new tokens are the same")


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many elements are the same before the first that differs."""
    pairs = list(zip(a, b, strict=False))
    return next((i for i, (one, other) in enumerate(pairs) if one != other), len(pairs))
