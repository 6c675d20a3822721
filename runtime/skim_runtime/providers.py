"""Execution providers: a model is exported for one, and runs on that or on the CPU."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from skim_runtime.errors import UserError
from skim_runtime.library import cuda_version

if TYPE_CHECKING:
    from skim_runtime.model_directory import ModelDirectory

__all__ = ["ACTIVATIONS", "PROVIDERS", "Provider", "cpu_instead", "cuda_obstacle", "provider_of"]

Provider = Literal["cpu", "cuda"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Types of activations and key/value cache for which each has GroupQueryAttention; the first is the default.
ACTIVATIONS: dict[str, tuple[str, ...]] = {"cpu": ("float32",), "cuda": ("float16", "bfloat16")}


def provider_of(directory: ModelDirectory, ep: Provider | None) -> str:
    """The provider to run a model with: the one that is asked for, or else its own.

    Raises:
        UserError: the model was not made for what is asked for.
    """
    if ep == "cuda" and directory.provider != "cuda":
        raise UserError(f"{directory.model_file}: was exported for the CPU: export it with --ep cuda")
    return ep or directory.provider


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


def cpu_instead(directory: ModelDirectory, ep: Provider | None, reason: str) -> None:
    """Warn that a model which was exported for CUDA runs on the CPU, unless the GPU was asked for.

    Raises:
        UserError: it was.
    """
    if ep is not None:
        raise UserError(f"{directory.model_file}: can't run on the GPU: {reason}")
    warnings.warn(f"the model was exported for CUDA and runs on the CPU: {reason}", RuntimeWarning, stacklevel=2)
