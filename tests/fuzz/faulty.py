"""A target with faults of every kind, to see that they are found."""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random


def make(directory: Path) -> None:
    """There are no originals."""


def attempt(original: Path, random: Random, place: Path) -> bool:
    """Accept and refuse inputs, and fail in every way."""
    match random.randrange(6):
        case 0:
            return True
        case 1:
            raise ValueError("a fault")
        case 2:
            assert place == original, "a wrong answer"
        case 3:
            os.abort()
        case 4:
            time.sleep(100)
    return False
