"""Contenders that take turns, so that a busy moment of the machine hits all of them, and how a call is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from skim_runtime.progress import Progress

__all__ = ["mean_seconds", "take_turns"]

Key = TypeVar("Key")
Found = TypeVar("Found")


def take_turns(
    contenders: Mapping[Key, Callable[[], Found]],
    rounds: int,
    progress: Progress,
    stage: str = "measuring",
    *,
    pause: float = 0.0,
    after_round: Callable[[dict[Key, list[Found]]], None] = lambda found: None,
) -> dict[Key, list[Found]]:
    """What each contender found in each round.

    Args:
        contenders: each is called once a round.
        rounds: how many.
        progress: told about each call.
        stage: name of all of them for `progress`.
        pause: seconds after a call, where threads of a contender would disturb the next.
        after_round: told what was found until then.
    """
    found: dict[Key, list[Found]] = {key: [] for key in contenders}
    progress.start(stage, rounds * len(contenders))
    for round_number in range(1, rounds + 1):
        for key, measure in contenders.items():
            found[key].append(measure())
            time.sleep(pause)
            progress.step(f"round {round_number}")
        after_round(found)
    progress.finish()
    return found


def mean_seconds(call: Callable[[], object], seconds: float) -> float:
    """Mean seconds of a call, of as many as take `seconds`; the first one counts only if it takes that long itself."""
    started = time.perf_counter()
    call()
    first = time.perf_counter() - started
    if first >= seconds:
        return first
    count, started = 0, time.perf_counter()
    while True:
        call()
        count += 1
        taken = time.perf_counter() - started
        if taken >= seconds:
            return taken / count
