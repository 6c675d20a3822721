"""The device as it was found, and what is installed."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata

from device_check.work import Work
from skim_runtime.measure.tables import say

__all__ = ["run"]

PROGRAMS = (
    ("nvidia-smi", "-q"),
    ("nvcc", "--version"),
    ("c++", "--version"),
    ("cmake", "--version"),
    ("compute-sanitizer", "--version"),
    ("ncu", "--version"),
)
FIRST_LINES = 4  # of each program's words in the record; all of them are in the log


def run(work: Work) -> None:
    """Write down the facts, and everything else to the log."""
    programs: dict[str, list[str] | None] = {}
    for program, *arguments in PROGRAMS:
        if shutil.which(program) is None:
            programs[program] = None
            continue
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        say(done.stdout + done.stderr)
        programs[program] = (done.stdout + done.stderr).strip().splitlines()[:FIRST_LINES]
    packages = {item.metadata["Name"]: item.version for item in metadata.distributions() if item.metadata["Name"]}
    facts = work.target.device.facts()
    work.save({"device": facts, "programs": programs, "packages": dict(sorted(packages.items()))})
