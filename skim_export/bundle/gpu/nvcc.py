"""Compiling CUDA source ahead of time."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from skim_runtime.errors import UserError

__all__ = ["CUBIN_OPTIONS", "compile_cubins"]

# Without a limit ptxas squeezes some kernels into 64 registers for one more workgroup on a multiprocessor, and spills.
CUBIN_OPTIONS = ("-cubin", "-O3", "-maxrregcount=255")

_log = logging.getLogger(__name__)


def compile_cubins(source: Path, architectures: Sequence[str]) -> dict[str, str]:
    """Compile a .cu file into one cubin for each architecture, beside it.

    Returns:
        Architecture -> name of the file; empty if nvcc is not on this machine, which is logged.

    Raises:
        UserError: nvcc refuses; with its first line.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        _log.warning("nvcc is not on this machine: %s is not compiled, drivers will do it", source.name)
        return {}
    files = {}
    for architecture in architectures:
        cubin = source.with_suffix(f".{architecture}.cubin")
        command = [nvcc, *CUBIN_OPTIONS, f"-arch={architecture}", "-o", str(cubin), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = next(iter((done.stderr or done.stdout).splitlines()), f"exit code {done.returncode}")
            raise UserError(f"nvcc cannot compile {source.name} for {architecture}: {reason}")
        files[architecture] = cubin.name
    return files
