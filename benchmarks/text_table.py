"""Tables in Markdown, aligned so that they can be read as they are: on a terminal without further packages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from skim_runtime.errors import UserError

__all__ = ["markdown_table", "write_markdown"]


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its first column aligned to the left and the others to the right."""
    widths = [max(3, *(len(row[i]) for row in (headings, *rows))) for i in range(len(headings))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        others = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join([cells[0].ljust(widths[0]), *others])} |"

    return "\n".join(line(cells) for cells in (headings, rule, *rows))


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
