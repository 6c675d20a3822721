"""Compiles what the other steps run: kernels, operators, and the solver where it is not installed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cmake_build import build
from cuda_device import Gpu
from cuda_stand_in import emulated_operators

from device_check.built import OPERATORS, SOLVER, built
from device_check.work import Work
from skim_runtime.installed import installed_file
from skim_runtime.measure.tables import say

__all__ = ["run"]

ROOT = Path(__file__).resolve().parents[3]


def run(work: Work) -> None:
    """Compile everything side by side."""
    jobs: dict[str, Callable[[], object]] = {"kernels": work.target.library}
    if isinstance(work.target.device, Gpu):
        number = work.target.device.architecture.removeprefix("sm_")
        options = ("-DSKIM_CUDA=on", f"-DSKIM_CUDA_ARCHITECTURES={number}")
        operators = built(work.directory, OPERATORS)
        jobs["operators"] = lambda: _build(ROOT / "custom_ops", operators, "skim_ops", *options)
    else:
        jobs["operators"] = lambda: _copy(emulated_operators(), built(work.directory, OPERATORS))
    if not installed_file(*SOLVER).exists():
        solver, sources = built(work.directory, SOLVER), ROOT / "skim_export" / "quantize" / "native"
        jobs["solver"] = lambda: _build(sources, solver, "skim_solver")
    found: dict[str, float] = {}

    def timed(name: str) -> None:
        started = time.perf_counter()
        jobs[name]()
        found[name] = round(time.perf_counter() - started, 1)
        work.save({"seconds": found})

    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(timed, jobs))


def _copy(library: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(library, to)


def _build(source: Path, library: Path, target: str, *options: str) -> None:
    """Build a target, which is a library."""
    say(build(source, library.parent / "build", target, f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={library.parent}", *options))
