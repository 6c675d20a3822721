"""A process for each row of a table, so that its peak memory is its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from skim_runtime.progress_bar import ProgressBar

__all__ = ["in_child", "peak_megabytes"]

Result = TypeVar("Result")


def in_child(function: Callable[..., Result], *args: Any) -> Result:
    """Call a function with a `Progress` and `args` in a fresh process; what it raises is raised here."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_with_progress, function, *args).result()


def _with_progress(function: Callable[..., Result], *args: Any) -> Result:
    with ProgressBar() as progress:
        return function(progress, *args)


def peak_megabytes() -> float:
    """Largest resident memory that this process had until now.

    From /proc (Linux): ru_maxrss of a child would start at its parent's.
    """
    status = Path("/proc/self/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024 / 1e6
