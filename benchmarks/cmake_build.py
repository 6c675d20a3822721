"""Building targets of the project's CMake files."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from skim_runtime.errors import UserError

__all__ = ["build"]


def build(source: Path, directory: Path, target: str, *options: str) -> str:
    """Configure a source directory in a build directory, and build a target for release; returns what CMake printed.

    Raises:
        UserError: CMake is missing, or refuses; with the first line that says something of an error.
    """
    cmake = shutil.which("cmake")
    if cmake is None:
        raise UserError("cmake is missing: pip install cmake")
    configured = (directory / "CMakeCache.txt").exists()  # and keeps its generator
    generator = ["-G", "Ninja"] if shutil.which("ninja") and not configured else []
    jobs = str(len(os.sched_getaffinity(0)))
    printed = ""
    for command in (
        [cmake, *generator, "-S", str(source), "-B", str(directory), "-DCMAKE_BUILD_TYPE=Release", *options],
        [cmake, "--build", str(directory), "--parallel", jobs, "--target", target],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        printed += done.stdout + done.stderr
        if done.returncode:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line]
            raise UserError(f"{target} cannot be built: {(lines or ['no reason given'])[0].strip()}")
    return printed
