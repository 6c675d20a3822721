"""Execution providers: a model is exported for one, and runs on that or on the CPU."""

from __future__ import annotations

import warnings
from pathlib import Path

from skim_runtime.library import cuda_version

__all__ = ["PROVIDERS", "cuda_obstacle", "warn_of_cpu"]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def cuda_obstacle(package: str, available: bool, library: Path | None) -> str | None:
    """What keeps a model off the GPU before anything is loaded; None if nothing does.

    Args:
        package: the runtime's, as pip calls it.
        available: whether that has a CUDA execution provider.
        library: our operator library; None if there is none to use.
    """
    if not available:
        return f"the installed {package} has no CUDAExecutionProvider"
    if library is not None and not cuda_version(library):
        return f"{library} has no kernels for GPUs: build it with SKIM_CUDA=on"
    return None


def warn_of_cpu(reason: str) -> None:
    """Say that a model which was exported for CUDA runs on the CPU."""
    warnings.warn(f"the model was exported for CUDA and runs on the CPU: {reason}", RuntimeWarning, stacklevel=2)
