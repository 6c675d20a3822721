"""Tables of docs/cuda.md, each made of the record of one run on a GPU (`record.json`, kept in docs/results/)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from device_check.summary import GOAL_HEADINGS, STEP_HEADINGS, goal_rows, step_rows
from skim_runtime.measure.tables import markdown_table

__all__ = ["TABLES", "device_of"]

Report = dict[str, Any]


def device_of(report: Report) -> str:
    """The GPU of a record, its driver and its highest clock."""
    device = report["steps"]["machine"]["result"]["device"]
    facts = device.get("nvidia-smi", {})
    parts = [device["name"]]
    parts += [f"driver {facts['driver_version']}", f"up to {facts['clocks.max.sm']}"] if facts else []
    return ", ".join(parts)


def _steps(reports: Sequence[Report]) -> str:
    (report,) = reports
    return markdown_table(STEP_HEADINGS, step_rows(report))


def _goals(reports: Sequence[Report]) -> str:
    (report,) = reports
    return markdown_table(GOAL_HEADINGS, goal_rows(report))


def _speed(reports: Sequence[Report]) -> str:
    """Microseconds of every shape, width and number of tokens; in brackets how many times as fast as cuBLAS."""
    (report,) = reports
    rows = [row for step in ("decode", "prefill") for row in report["steps"][step]["result"]["rows"]]
    tokens = list(dict.fromkeys(row["tokens"] for row in rows))
    of = {(row["shape"], row["contender"], row["tokens"]): row for row in rows}
    lines = []
    for shape, contender in dict.fromkeys((row["shape"], row["contender"]) for row in rows):
        found = [of.get((shape, contender, count)) for count in tokens]
        cells = ["" if row is None else f"{row['microseconds']:.1f} ({row['to_cublas']:.2f})" for row in found]
        first = next(row for row in found if row is not None)
        lines.append((f"{shape}, {contender}", f"{first['bandwidth_share']:.0%}", *cells))
    bandwidth = report["steps"]["decode"]["result"]["bandwidth"]
    table = markdown_table(("layer", "of bandwidth", *(f"M = {count}" for count in tokens)), lines)
    return f"{table}\n\nMemory alone was read at {bandwidth['bytes_per_second'] / 1e9:.0f} GB/s, by {bandwidth['way']}."


TABLES: Mapping[str, Callable[[Sequence[Report]], str]] = {
    "device-steps": _steps,
    "device-goals": _goals,
    "device-speed": _speed,
}
