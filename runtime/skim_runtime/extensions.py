"""What another installed package adds to the runtime: skim-export, where it is there."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from skim_runtime.errors import UserError

__all__ = ["extension"]

ENTRY_POINTS = "skim_runtime.extensions"


def extension(name: str, wanted: str) -> Any:
    """The object that a package declares under a name in the group of entry points `skim_runtime.extensions`.

    Args:
        name: of the entry point.
        wanted: what the user asked for, to say what it needs.

    Raises:
        UserError: no installed package declares it.
    """
    found = tuple(entry_points(group=ENTRY_POINTS, name=name))
    if not found:
        raise UserError(f"{wanted} needs the package skim-export, which is not installed")
    return found[0].load()
