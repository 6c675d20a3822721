"""Where an output goes, and where to keep what is not to be seen under its name yet."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from skim_runtime.errors import UserError
from skim_runtime.model_files import LONGEST_NAME

__all__ = ["check_directory", "check_name", "place_for"]

ROOM = 60  # bytes that whoever makes a place may append to its name


def place_for(target: Path, purpose: str) -> Path:
    """A hidden path from which files can be renamed into a directory; the same one each time, nothing is made there.

    It is beside `target`, so that a new directory appears by one rename. It is in `target` if that exists and is the
    root of a file system, or if nothing can be written beside it.

    Args:
        target: the directory, which may not exist.
        purpose: what the place is for, a part of its name.
    """
    target = target.resolve()
    if target.is_dir() and not _can_be_beside(target):
        return target / f".skim-export.{purpose}"
    name = target.name
    if len(os.fsencode(name)) + len(purpose) + ROOM > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return target.with_name(f".{name}.{purpose}")


def check_name(argument: str, path: Path, suffix: str = "") -> None:
    """Find out whether files can be called so.

    Raises:
        UserError: a part of the path is too long; with `suffix`, the last one together with it.
    """
    for part in (*path.parent.parts, path.name + suffix):
        if (length := len(os.fsencode(part))) > LONGEST_NAME:
            with_suffix = f" with {suffix}" if suffix and part == path.name + suffix else ""
            raise UserError(f"{argument} {path}: a name of {length} bytes{with_suffix}; {LONGEST_NAME} at most")


def check_directory(argument: str, target: Path) -> None:
    """Find out whether files can be written to a directory, which is made if need be.

    Raises:
        UserError: it, or what it would be made in, is no directory, or can't be written to.
    """
    check_name(argument, target)
    existing = next(path for path in (target.absolute(), *target.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise UserError(f"{argument}: {existing} is no directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{argument}: {existing} can't be written to")


def _can_be_beside(target: Path) -> bool:
    parent = target.parent
    return target != parent and _device(target) == _device(parent) and os.access(parent, os.W_OK | os.X_OK)


def _device(path: Path) -> int:
    return path.stat().st_dev
