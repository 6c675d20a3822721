"""The tables of the pages, made from what the measurements wrote to JSON files in docs/results/.

A table of the page stands between two comments; the first names the table and the files that it is made of:

    <!-- table: kernels-decode docs/results/kernels.json -->
    ...
    <!-- end -->

What is between them is written anew; everything else on the page stays. Below a table stands the machine of its files,
which must be one and the same, unless the table is of no machine: instructions that an emulator counted, predictions.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import model_tables
import quality_tables
import speed_tables
from device_check.tables import TABLES as DEVICE_TABLES
from device_check.tables import device_of

from skim_runtime.errors import UserError
from skim_runtime.measure.tables import say
from skim_runtime.text_file import read_text

__all__ = ["PAGES", "ROOT", "add_arguments", "rewritten", "run"]

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    ROOT / "docs" / "results.md",
    ROOT / "docs" / "cuda.md",
    ROOT / "docs" / "models.md",
    ROOT / "README.md",
)
TABLES: Mapping[str, Callable[[Sequence[dict[str, Any]]], str]] = {
    **speed_tables.TABLES,
    **quality_tables.TABLES,
    **DEVICE_TABLES,
    **model_tables.TABLES,
}
OF_NO_MACHINE = ("architectures", "instructions", "roofline")
HEAD = ("command", "date", "commit", "versions", "machine")  # of every file (skim_runtime/measure/report.py)
MARKED = re.compile(r"<!-- table: (?P<name>\S+) (?P<files>.+?) -->\n.*?<!-- end -->", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = f"Tables: {', '.join(TABLES)}. What each is made of stands at its function."
    parser.add_argument("--pages", type=Path, nargs="+", default=PAGES, metavar="PAGE", help="default: those four")
    parser.add_argument("--check", action="store_true", help="only find out whether the pages are as the files say")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the tables of the pages."""
    for page in args.pages:
        before = read_text(page, "--pages")
        after = rewritten(before, ROOT)
        count = len(MARKED.findall(before))
        if before == after:
            say(f"{page}: {count} tables are as their files say")
        elif args.check:
            raise UserError(f"{page}: tables are not as their files say; python benchmarks tables writes them")
        else:
            page.write_text(after, "utf-8")
            say(f"{page}: {count} tables written")


def rewritten(page: str, root: Path) -> str:
    """The page with its marked tables made from the files that they name, relative to `root`.

    Raises:
        UserError: there is no such table or file, a file is something else, or a table has files of several machines.
    """

    def table(match: re.Match[str]) -> str:
        name, files = match["name"], match["files"].split()
        if name not in TABLES:
            raise UserError(f"table {name}: must be one of {', '.join(TABLES)}")
        reports = [_read(root, file) for file in files]
        for file, report in zip(files, reports, strict=True):
            if report["machine"] != reports[0]["machine"] and name not in OF_NO_MACHINE:
                raise UserError(f"table {name}: {file} is of another machine than {files[0]}")
        try:
            text = TABLES[name](reports)
        except (KeyError, TypeError, IndexError, StopIteration) as error:
            raise UserError(f"table {name}: {' '.join(files)}: is not what this table is made of: {error!r}") from error
        return f"<!-- table: {name} {' '.join(files)} -->\n\n{text}\n\n{_where(name, reports)}\n\n<!-- end -->"

    return MARKED.sub(table, page)


def _read(root: Path, file: str) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads((root / file).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    if missing := [name for name in HEAD if name not in report]:
        raise UserError(f"{file}: has no {missing[0]}")
    return report


def _where(name: str, reports: Sequence[dict[str, Any]]) -> str:
    """The machine and the dates."""
    machine, dates = reports[0]["machine"], " and ".join(sorted({report["date"] for report in reports}))
    if name in OF_NO_MACHINE:
        return f"{dates}."
    if name in DEVICE_TABLES:
        return f"On {device_of(reports[0])}, commit {str(reports[0]['commit'])[:12]}, {dates}."
    return f"On {machine['processor']}, {machine['cores']} cores, {dates}."
