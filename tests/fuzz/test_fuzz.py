"""A few inputs of every kind that `make fuzz` tries, and whether it would notice what is wrong."""

from __future__ import annotations

import re
from functools import partial
from random import Random

import pytest

from . import checkpoints, directories, inputs
from .native import try_bundles, try_operators

SEED = 7


@pytest.mark.parametrize(
    ("attempt", "count", "least"),
    [
        pytest.param(partial(try_operators, sanitized=False), 20_000, 5_000, id="operators"),
        pytest.param(try_bundles, 200, 20, id="bundles"),
    ],
)
def test_nothing_is_found_in_native_code(attempt, count, least):
    result = attempt(SEED, 0, count)
    assert result.findings == []
    assert result.inputs == count
    assert least < result.accepted < count - least


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("target", "count", "least"), [(directories, 200, 40), (checkpoints, 40, 5)])
def test_nothing_is_found(target, count, least, tmp_path):
    """In this process, which spares the time that another takes to start."""
    original = tmp_path / "original"
    original.mkdir()
    target.make(original)
    accepted = 0
    for number in range(count):
        place = tmp_path / str(number)
        place.mkdir()
        accepted += target.attempt(original, Random(f"{SEED} {number}"), place)
    assert least < accepted < count - least


def test_what_is_wrong_is_found(monkeypatch):
    monkeypatch.setattr(inputs, "SECONDS", 5)
    result = inputs.try_inputs("faulty", SEED, 5, 6)
    assert (result.inputs, result.accepted) == (6, 1)
    assert [re.sub(r":\d+\)", ")", finding) for finding in sorted(result.findings)] == [
        "input 10: ValueError: a fault (faulty.py)",
        "input 5: AssertionError: a wrong answer (faulty.py)",
        "input 7: the process ended with code -6",
        "input 8: takes more than 5 seconds",
    ]
