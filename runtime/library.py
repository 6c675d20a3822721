"""The library with the operators of the domain ai.skim."""

from __future__ import annotations

import ctypes
from pathlib import Path

from skim_runtime.errors import UserError

__all__ = ["kernel_name", "library_path"]


def library_path() -> Path:
    """Path of `libskim_ops.so`, to be given to `SessionOptions.register_custom_ops_library`.

    Raises:
        UserError: the library has not been built.
    """
    path = Path(__file__).resolve().parent / "lib" / "libskim_ops.so"
    if not path.is_file():
        raise UserError(
            f"the operator library {path} is missing: build it with `pip install .` in the source directory"
        )
    return path


def kernel_name(library: Path | None = None) -> str:
    """Name of the kernels that a library, by default the installed one, uses on this CPU: `avx2` or `reference`.

    The environment variable `SKIM_KERNEL` overrides the choice.

    Raises:
        UserError: the library has not been built, or `SKIM_KERNEL` names no kernel that this CPU can run.
    """
    function = ctypes.CDLL(str(library or library_path())).SkimKernelName
    function.restype = ctypes.c_char_p
    name: bytes | None = function()
    if name is None:
        raise UserError("the environment variable SKIM_KERNEL must be unset, or avx2 or reference as the CPU allows")
    return name.decode()
