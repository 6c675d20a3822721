"""The whole grid of cases against float64."""

from __future__ import annotations

import time
from collections.abc import Iterable

from cuda_check import Case, check

from device_check.work import Work
from skim_runtime.errors import UserError
from skim_runtime.measure.tables import say

__all__ = ["check_cases", "run"]

EVERY = 25  # cases after which what was found is written


def run(work: Work) -> None:
    """Check all cases."""
    check_cases(work, work.target.cases())


def check_cases(work: Work, cases: Iterable[Case], *, every: int = EVERY, replay: bool = True) -> None:
    """Check cases, and fail if any is wrong.

    Args:
        work: the step's.
        cases: to check.
        every: so many of them what was found is written.
        replay: see `check`.

    Raises:
        UserError: how many are wrong.
    """
    largest: dict[str, float] = {}
    wrong: list[dict[str, str]] = []
    count, started = 0, time.perf_counter()

    def save() -> None:
        seconds = round(time.perf_counter() - started, 1)
        work.save({"cases": count, "largest_error": largest, "wrong": wrong, "seconds": seconds})

    for case in cases:
        finding = check(case, work.target.kernels, work.target.device, replay=replay)
        count += 1
        if not finding.error <= largest.get(case.dtype, 0):  # also where it is not a number
            largest[case.dtype] = finding.error
        if finding.complaint is not None:
            say(f"{case}: {finding.complaint}")
            wrong.append({"case": str(case), "complaint": finding.complaint})
        if count % every == 0:
            save()
    save()
    if wrong:
        raise UserError(f"{len(wrong)} of {count} cases are wrong: {wrong[0]['case']}: {wrong[0]['complaint']}")
