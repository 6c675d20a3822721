"""The whole grid of cases against float64."""

from __future__ import annotations

import time
from collections.abc import Iterable

from cuda_check import Case, Tally, check, fits

from device_check.work import Work
from skim_runtime.errors import UserError

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
    tally, count, started = Tally(), 0, time.perf_counter()

    def save() -> None:
        seconds = round(time.perf_counter() - started, 1)
        wrong = [{"case": str(case), "complaint": complaint} for case, complaint in tally.wrong]
        work.save({"cases": count, "largest_error": tally.largest, "wrong": wrong, "seconds": seconds})

    for count, case in enumerate(filter(lambda case: fits(case, work.target.device), cases), 1):
        tally.add(case, check(case, work.target.kernels, work.target.device, replay=replay))
        if count % every == 0:
            save()
    save()
    if tally.wrong:
        case, complaint = tally.wrong[0]
        raise UserError(f"{len(tally.wrong)} of {count} cases are wrong: {case}: {complaint}")
