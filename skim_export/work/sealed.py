"""Files that are complete, and known to be by their hash: what an interrupted export finds again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from skim_export.work.files import fsync, sha256

__all__ = ["any_sealed", "is_sealed", "remove_partial", "remove_sealed", "write_sealed", "write_sealed_array"]

SUFFIX = ".sha256"
PARTIAL = ".partial"


def write_sealed(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file; it appears as `path`, with its hash beside it, when all of it is on the disk.

    Several processes may do so at the same time, if they write the same.
    """
    for target, fill in ((path, write), (_seal(path), lambda partial: partial.write_text(sha256(path)))):
        partial = target.with_name(f"{target.name}.{uuid4().hex}{PARTIAL}")
        try:
            fill(partial)
            fsync(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    fsync(path.parent)


def write_sealed_array(path: Path, array: npt.NDArray[Any]) -> None:
    """`write_sealed` of an array, as a .npy file."""

    def fill(partial: Path) -> None:
        contiguous = np.ascontiguousarray(array)
        with partial.open("wb") as file:  # by write: unlike np.save, it tells why the disk refused
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(contiguous))
            file.write(contiguous.data)

    write_sealed(path, fill)


def is_sealed(path: Path) -> bool:
    """Whether a file was written by `write_sealed` and still is as it was; it is read to find out."""
    seal = _seal(path)
    return path.is_file() and seal.is_file() and sha256(path) == seal.read_text()


def remove_sealed(path: Path) -> None:
    """Remove a file and its hash, if they are there."""
    _seal(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def remove_partial(directory: Path) -> None:
    """Remove what processes that were killed have left half-written in a directory and below it."""
    for path in directory.rglob(f"*{PARTIAL}"):
        path.unlink(missing_ok=True)


def any_sealed(directory: Path) -> bool:
    """Whether there are such files in a directory or below it."""
    return next(directory.rglob(f"*{SUFFIX}"), None) is not None


def _seal(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)
