"""Names of files that a model gives: they may be hostile."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard

__all__ = ["is_file_name"]


def is_file_name(name: object) -> TypeGuard[str]:
    """Whether it names something in the directory itself: no path, no directory."""
    return isinstance(name, str) and name not in ("", "..") and Path(name).name == name
