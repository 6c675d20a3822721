"""Tables of docs/models.md: the recipes, and what is tested of every architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from architectures import KINDS, Case, lines

from skim_runtime.measure.tables import count, markdown_table

__all__ = ["TABLES"]

Report = dict[str, Any]


def _models(reports: Sequence[Report]) -> str:
    """`skim-export models --json`: a line for each recipe, the smallest model first."""
    (report,) = reports
    headings = (
        "alias",
        "model",
        "licence",
        "parameters",
        "bits",
        "size, GB",
        "disk, GB",
        "memory, GB",
        "with `--calib`",
    )
    rows = []
    for model in sorted(report["models"], key=lambda model: model["parameters"]):
        licence = model["licence"] + (", gated" if model["gated"] else "")
        cells = [f"`{model['alias']}`", model["title"], licence, count(model["parameters"]), f"{model['bits']:g}"]
        sizes = model["sizes"] or {}
        nbytes = [sizes[name] for name in ("output", "disk", "memory", "memory_given_text") if sizes]
        rows.append([*cells, *([f"{n / 1e9:.2f}" for n in nbytes] or ["not yet", "", "", ""])])
    return markdown_table(headings, rows, left=3)


def _architectures(reports: Sequence[Report]) -> str:
    """`python benchmarks architectures`: a line for each case."""
    (report,) = reports
    rows = lines(Case(**case) for case in report["cases"])
    return markdown_table(("case", *KINDS.values()), rows, left=1 + len(KINDS))


TABLES: Mapping[str, Callable[[Sequence[Report]], str]] = {"models": _models, "architectures": _architectures}
