"""What ptxas says a kernel takes, in the report that `-Xptxas -v` asks for."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Resources", "demangled", "read_report"]


@dataclass(frozen=True)
class Resources:
    """What one kernel takes.

    Attributes:
        kernel: its mangled name.
        registers: of a thread.
        stack_bytes: of local memory of a thread.
        spill_bytes: of registers that are stored to local memory and loaded from it.
        shared_bytes: of static shared memory of a block.
    """

    kernel: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int


def read_report(report: str) -> Iterator[Resources]:
    """The kernels of a report; functions that are called by them are left out, their registers are the kernels'."""
    for part in report.split("Compiling entry function ")[1:]:
        stack, stores, loads = _numbers(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        )
        (registers,) = _numbers(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        yield Resources(part.split("'")[1], registers, stack, stores + loads, int(shared[1]) if shared else 0)


def demangled(name: str) -> str:
    """A kernel's name as it is in the source, without its namespaces and parameters."""
    done = subprocess.run(["c++filt", "-p", name], capture_output=True, text=True, check=True)
    return re.sub(r"\bskim::cuda::|^void ", "", done.stdout.strip())


def _numbers(pattern: str, text: str) -> list[int]:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"ptxas's report has no {pattern!r}")
    return [int(number) for number in match.groups()]
