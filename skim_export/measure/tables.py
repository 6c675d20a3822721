"""The tables that skim-bench prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from skim_export.measure.emulated import Count
from skim_export.measure.kernels import Row
from skim_export.measure.models import ModelRow
from skim_export.measure.speed import number

__all__ = ["print_counts", "print_models", "print_not_measured", "print_rows"]


def print_not_measured(reasons: Sequence[str]) -> None:
    """What is missing in the tables."""
    for reason in reasons:
        _print(f"not measured: {reason}")


def print_rows(rows: Sequence[Row], title: str) -> None:
    """A table for each shape and number of tokens."""
    for shape, tokens in dict.fromkeys((row.shape, row.tokens) for row in rows):
        of_table = [row for row in rows if (row.shape, row.tokens) == (shape, tokens)]
        threads = of_table[0].threads
        table = _table(
            f"\n{shape}, {tokens} tokens, {threads} threads, {title}",
            ["rows", "arithmetic"],
            ["ms", "fastest", "Gweights/s", "GB/s", "GFLOP/s", "operator ms", "times", "numpy ms", "times"],
        )
        for row in of_table:
            table.add_row(
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
        _print(table)


def print_counts(counts: Sequence[Count], title: str) -> None:
    """One table, a line for each shape and row class."""
    columns = list(dict.fromkeys((count.arithmetic, count.tokens) for count in counts))
    headings = [f"{arithmetic} M={tokens}" for arithmetic, tokens in columns]
    table = _table(f"\n{title}", ["shape", "rows"], [*headings, "largest error"])
    for shape, rows in dict.fromkeys((count.shape, count.rows) for count in counts):
        found = {(c.arithmetic, c.tokens): c for c in counts if (c.shape, c.rows) == (shape, rows)}
        cells = [number(found[column].instructions_per_weight, ".3f") for column in columns]
        table.add_row(shape, rows, *cells, f"{max(count.error for count in found.values()):.1e}")
    _print(table)


def print_models(rows: Sequence[ModelRow], title: str) -> None:
    """A line for each engine, and how long they agree."""
    headings = ["prompt tokens/s", "decode tokens/s", "peak MB", "weights MB", "code MB"]
    table = _table(f"\n{title}", ["engine"], headings)
    for row in rows:
        table.add_row(
            row.engine,
            f"{row.prompt_speed:.1f}",
            f"{row.decode_speed:.1f}",
            f"{row.peak_megabytes:.1f}",
            f"{row.weight_megabytes:.1f}",
            f"{row.code_megabytes:.2f}",
        )
    _print(table)
    if len(rows) > 1:
        _print(f"the first {_common(*(row.tokens for row in rows))} of {len(rows[0].tokens)} new tokens are the same")


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many elements are the same before the first that differs."""
    pairs = list(zip(a, b, strict=False))
    return next((i for i, (one, other) in enumerate(pairs) if one != other), len(pairs))


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Any:
    table = Table(title=title, box=None, header_style="", title_justify="left", pad_edge=False)
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _print(what: Any) -> None:
    Console(width=150).print(what, highlight=False)
