"""Loading the operator library: which one a model runs with, and what happens without.

A model is data, wherever it comes from, and a library in its directory is code. So the installed library runs it; the
directory's own does only if the user says that its maker is trusted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from skim_runtime.errors import UserError, reason
from skim_runtime.library import kernel_name, library_path
from skim_runtime.model_directory import ModelDirectory

__all__ = ["FALLBACK", "check_onnxruntime", "load", "one_line"]

OLDEST = (1, 23)  # onnxruntime that models are tried with, as in pyproject.toml

FALLBACK = "function fallback"


def load(
    directory: ModelDirectory, loader: Callable[[Path], object], *, trust_library: bool = False
) -> tuple[Path | None, str]:
    """Load the installed library, or the directory's own if that is trusted.

    Without a usable library a warning says why, and the model-local functions of the graph do the work.

    Args:
        directory: the model.
        loader: loads a library, or raises.
        trust_library: whether to run the code of the library in the directory, if there is one.

    Returns:
        The library that `loader` took, and the kernel that it chose for this CPU with its arithmetic; without one None
        and `FALLBACK`.

    Raises:
        UserError: `trust_library` is given, and the library in the directory is none, or lies elsewhere.
    """
    own = directory.own_library if trust_library else None
    if own is not None:
        try:
            loader(own)
            return own, _kernel(own, directory)
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise UserError(f"{own}: can't be used: {one_line(error)}") from None
    try:
        path = library_path()
        loader(path)
    except Exception as error:
        text = f"no operator library, the slow function fallback runs: {one_line(error)}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return None, FALLBACK
    return path, _kernel(path, directory)


def check_onnxruntime(version: str) -> None:
    """Raises `UserError` if a version of onnxruntime is older than those that models are tried with."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise UserError(f"onnxruntime {version} is installed; {oldest} or newer is needed: pip install -U onnxruntime")


def _kernel(library: Path, directory: ModelDirectory) -> str:
    return f"{kernel_name(library)}, {directory.graph.arithmetic}"


def one_line(error: BaseException) -> str:
    """The message of an onnxruntime error, without its prefix and its line breaks."""
    text = reason(error)
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text
