"""Tables of docs/models.md: the recipes, and what is tested of every architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from architectures import KINDS, Case, lines

from skim_export.cli.models import HEADINGS, cells
from skim_runtime.measure.tables import markdown_table

__all__ = ["TABLES"]

Report = dict[str, Any]


def _models(reports: Sequence[Report]) -> str:
    """`skim-export models --json`: a line for each recipe, the smallest model first."""
    (report,) = reports
    rows = [cells(model) for model in sorted(report["models"], key=lambda model: model["parameters"])]
    headings = [heading.replace("--calib", "`--calib`") for heading in HEADINGS]
    return markdown_table(headings, [[f"`{alias}`", *others] for alias, *others in rows], left=3)


def _architectures(reports: Sequence[Report]) -> str:
    """`python benchmarks architectures`: a line for each case."""
    (report,) = reports
    rows = lines(Case(**case) for case in report["cases"])
    return markdown_table(("case", *KINDS.values()), rows, left=1 + len(KINDS))


TABLES: Mapping[str, Callable[[Sequence[Report]], str]] = {"models": _models, "architectures": _architectures}
