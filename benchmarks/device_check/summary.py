"""What a record says, in a few lines, and how its figures stand to what is asked of the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from device_check.plan import PLAN
from skim_runtime.measure.tables import text_table

__all__ = ["GOALS", "GOAL_HEADINGS", "STEP_HEADINGS", "Goal", "goal_rows", "step_rows", "summary"]

STEP_HEADINGS = ("step", "seconds", "planned", "status")
GOAL_HEADINGS = ("goal", "bound", "measured", "met")
LAYER = "14336x4096"
CUBLAS, NBITS = "cuBLAS float16", "MatMulNBits 4 bits"


@dataclass(frozen=True)
class Goal:
    """What is asked of the kernels on a GPU of data centres.

    Attributes:
        what: in words.
        bound: the figure that is asked for.
        least: whether it is the least that will do; otherwise the most.
        measured: the figure in a record, or None where that has none.
    """

    what: str
    bound: float
    least: bool
    measured: Callable[[Mapping[str, Any]], float | None]


def summary(record: Mapping[str, Any]) -> str:
    """The steps, and the goals; of a rehearsal only the steps."""
    tables = [text_table(STEP_HEADINGS, step_rows(record))]
    if not record["stand_in"]:
        tables.append(text_table(GOAL_HEADINGS, goal_rows(record)))
    return "\n\n".join(tables)


def step_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row of `STEP_HEADINGS` for each step that was to run."""
    steps = record["steps"]
    return [
        (step.name, f"{steps[step.name]['seconds']:.0f}", str(step.expected), steps[step.name]["status"])
        for step in PLAN
        if step.name in steps
    ]


def goal_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row of `GOAL_HEADINGS` for each goal."""
    rows: list[tuple[str, ...]] = []
    for goal in GOALS:
        found = goal.measured(record)
        met = "" if found is None else "yes" if (found >= goal.bound) == goal.least or found == goal.bound else "no"
        sign = "at least" if goal.least else "at most"
        rows.append((goal.what, f"{sign} {goal.bound:g}", "not measured" if found is None else f"{found:.3g}", met))
    return rows


def _rows(record: Mapping[str, Any], step: str) -> Iterator[Mapping[str, Any]]:
    yield from (record["steps"].get(step, {}).get("result") or {}).get("rows", [])


def _time(record: Mapping[str, Any], step: str, contender: str, tokens: int) -> Mapping[str, Any] | None:
    found = (row for row in _rows(record, step) if (row["shape"], row["tokens"]) == (LAYER, tokens))
    return next((row for row in found if row["contender"] == contender), None)


def _ratio(one: tuple[str, str, int], other: tuple[str, str, int]) -> Callable[[Mapping[str, Any]], float | None]:
    """Microseconds of one row over those of another, each by step, contender and tokens."""

    def measured(record: Mapping[str, Any]) -> float | None:
        rows = [_time(record, *key) for key in (one, other)]
        if None in rows:
            return None
        upper, lower = (float(row["microseconds"]) for row in rows if row is not None)
        return upper / lower

    return measured


def _share(record: Mapping[str, Any]) -> float | None:
    row = _time(record, "decode", "3 bits", 1)
    return None if row is None else float(row["bandwidth_share"])


def _quantizing(record: Mapping[str, Any]) -> float | None:
    seconds: Sequence[float] = (record["steps"].get("quantize", {}).get("result") or {}).get("seconds", [])
    return min(seconds, default=None)


GOALS = (
    Goal("3 bits, 1 token: share of the bandwidth", 0.8, True, _share),
    Goal("3 bits, 1 token: times as fast as cuBLAS", 4, True, _ratio(("decode", CUBLAS, 1), ("decode", "3 bits", 1))),
    Goal("3 bits: time of 16 tokens over that of 1", 1.3, False,
         _ratio(("decode", "3 bits", 16), ("decode", "3 bits", 1))),
    Goal("3 bits, 2048 tokens: times as fast as cuBLAS", 0.8, True,
         _ratio(("prefill", CUBLAS, 2048), ("prefill", "3 bits", 2048))),
    Goal("4 bits, 1 token: times as fast as MatMulNBits", 1, True, _ratio(("nbits", NBITS, 1), ("nbits", "4 bits", 1))),
    Goal("one layer of a 7B model quantized a second time, seconds", 3, False, _quantizing),
)  # fmt: skip
