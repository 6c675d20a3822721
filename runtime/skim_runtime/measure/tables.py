"""Tables as text: aligned with spaces for the terminal, or as Markdown, which can be read as it is, too."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from skim_runtime.errors import UserError

__all__ = ["count", "markdown_table", "number", "say", "text_table", "with_error", "write_markdown"]


def number(value: float | None, form: str) -> str:
    """A cell of a table, empty for None."""
    return "" if value is None else format(value, form)


def count(value: int) -> str:
    """A large number in millions or billions, such as 135M or 8.19B."""
    return f"{value / 1e9:.3g}B" if value >= 999.5e6 else f"{value / 1e6:.3g}M"


def with_error(value: float, error: float | None) -> str:
    """A value and its standard error with two digits, such as 22.05 ± 0.31; three decimals where no error is known."""
    if error is None:
        return f"{value:.3f}"
    digits = 1 - int(f"{error:e}".partition("e")[2])
    return f"{value:.{max(0, digits)}f} ± {error:.{max(0, digits)}f}"


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", left: int = 1) -> str:
    """A table for the terminal.

    Args:
        headings: of the columns; they may have several lines.
        rows: their cells.
        title: a line above it.
        left: so many columns are aligned to the left, the others to the right.
    """
    parts = [heading.split("\n") for heading in headings]
    height = max(map(len, parts))
    above = list(zip(*([""] * (height - len(part)) + part for part in parts), strict=True))
    lines = [*above, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    text = ["  ".join(_aligned(line, widths, left)).rstrip() for line in lines]
    return "\n".join([*([title] if title else []), *text])


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table in Markdown; arguments are those of `text_table`, headings of one line each."""
    widths = [max(3, *(len(row[i]) for row in (headings, *rows))) for i in range(len(headings))]
    rule = ["-" * (width - (i >= left)) + ":" * (i >= left) for i, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(_aligned(cells, widths, left))} |" for cells in (headings, rule, *rows))


def _aligned(cells: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    pairs = enumerate(zip(cells, widths, strict=True))
    return [cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in pairs]


def say(*paragraphs: str) -> None:
    """Print paragraphs, an empty line behind each."""
    for paragraph in paragraphs:
        sys.stdout.write(f"{paragraph}\n\n")
    sys.stdout.flush()


def write_markdown(path: Path | None, paragraphs: Sequence[str]) -> None:
    """Write what `--markdown` asks for, if it was given.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        return
    try:
        path.write_text("\n\n".join(paragraphs) + "\n", "utf-8")
    except OSError as error:
        raise UserError(f"--markdown {path}: cannot be written: {error.strerror}") from error
