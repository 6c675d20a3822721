"""The library with the operators of the domain ai.skim."""

from __future__ import annotations

import ctypes
from pathlib import Path

from skim_runtime.errors import UserError
from skim_runtime.installed import installed_file

__all__ = ["cuda_version", "kernel_name", "kernel_names", "library_path"]


def library_path() -> Path:
    """Path of `libskim_ops.so`, to be given to `SessionOptions.register_custom_ops_library`.

    Raises:
        UserError: the library has not been built.
    """
    path = installed_file("skim_runtime", "lib/libskim_ops.so")
    if not path.is_file():
        raise UserError(
            f"the operator library {path} is missing: build it with `pip install ./runtime` in the source directory"
        )
    return path


def kernel_name(library: Path | None = None) -> str:
    """Name of the kernels that a library, by default the installed one, uses on this CPU.

    They are the first of `kernel_names`, unless the environment variable `SKIM_KERNEL` names others.

    Raises:
        UserError: the library has not been built, or `SKIM_KERNEL` names no kernel that this CPU can run.
    """
    name = _call("SkimKernelName", library)
    if name is None:
        names = " or ".join(kernel_names(library))
        raise UserError(f"the environment variable SKIM_KERNEL must be unset, or {names} on this CPU")
    return name


def kernel_names(library: Path | None = None) -> list[str]:
    """Names of all kernels of a library that this CPU can run, the fastest first.

    Raises:
        UserError: the library has not been built.
    """
    return (_call("SkimKernelNames", library) or "").split()


def cuda_version(library: Path) -> int:
    """The version of CUDA, such as 13000, that a library's kernels for GPUs are built with; 0 if it has none.

    It has none, either, if it can't be loaded, or is older than these kernels.
    """
    try:
        version: int = ctypes.CDLL(str(library)).SkimCudaVersion()
    except (OSError, AttributeError):
        return 0
    return version


def _call(function: str, library: Path | None) -> str | None:
    """What an exported function without arguments says."""
    call = getattr(ctypes.CDLL(str(library or library_path())), function)
    call.restype = ctypes.c_char_p
    text: bytes | None = call()
    return None if text is None else text.decode()
