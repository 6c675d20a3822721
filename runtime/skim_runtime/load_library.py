"""Loading the operator library: which one a model runs with, and what happens without."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from skim_runtime.errors import UserError
from skim_runtime.library import cuda_version, kernel_name, library_path
from skim_runtime.model_directory import ModelDirectory

__all__ = ["FALLBACK", "load", "one_line"]

FALLBACK = "function fallback"


def load(directory: ModelDirectory, loader: Callable[[Path], object]) -> tuple[Path | None, str]:
    """Load the library that lies beside the model, where an export puts it, or else the installed one.

    For a model that was exported for CUDA, one that has kernels for GPUs goes first. Without a usable library a warning
    says why, and the model-local functions of the graph do the work.

    Args:
        directory: the model.
        loader: loads a library, or raises.

    Returns:
        The library that `loader` took, and the kernel that it chose for this CPU with its arithmetic; without one None
        and `FALLBACK`.
    """
    paths, reasons = [], []
    if directory.custom_ops_library is not None:
        paths.append(directory.path / directory.custom_ops_library)
    try:
        paths.append(library_path())
    except UserError as error:
        reasons.append(str(error))
    if directory.provider == "cuda":
        paths.sort(key=lambda path: not cuda_version(path))
    for path in paths:
        try:
            loader(path)
        except Exception as error:  # onnxruntime's exceptions have no common base
            reasons.append(one_line(error))
        else:
            return path, f"{kernel_name(path)}, {directory.graph.arithmetic}"
    text = "; ".join(reasons)
    warnings.warn(f"no operator library, the slow function fallback runs: {text}", RuntimeWarning, stacklevel=2)
    return None, FALLBACK


def one_line(error: BaseException) -> str:
    """The message of an onnxruntime error, without its prefix and its line breaks."""
    text = " ".join(str(error).split())
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text
