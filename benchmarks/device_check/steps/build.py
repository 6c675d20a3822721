"""Compiles what the other steps run: kernels, operators, and the solver where it is not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cuda_device import Gpu
from cuda_stand_in import emulated_operators

from device_check.built import OPERATORS, SOLVER, built
from device_check.work import Work
from skim_runtime.errors import UserError
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
        jobs["operators"] = lambda: _cmake(ROOT / "custom_ops", operators, "skim_ops", *options)
    else:
        jobs["operators"] = lambda: _copy(emulated_operators(), built(work.directory, OPERATORS))
    if not installed_file(*SOLVER).exists():
        solver, sources = built(work.directory, SOLVER), ROOT / "skim_export" / "quantize" / "native"
        jobs["solver"] = lambda: _cmake(sources, solver, "skim_solver")
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


def _cmake(source: Path, library: Path, target: str, *options: str) -> None:
    """Configure and build a target, which is a library.

    Raises:
        UserError: it can't be built.
    """
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    threads = str(len(os.sched_getaffinity(0)))
    build = library.parent / "build"
    always = ("-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={library.parent}")
    for command in (
        ["cmake", *generator, "-S", str(source), "-B", str(build), *always, *options],
        ["cmake", "--build", str(build), "--parallel", threads, "--target", target],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        say(done.stdout + done.stderr)
        if done.returncode:
            raise UserError(f"{target} can't be built: see the log")
