"""Names of files that a model gives: they may be hostile."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard

__all__ = ["LONGEST_NAME", "is_file_name"]


LONGEST_NAME = 255  # bytes, on all usual file systems


def is_file_name(name: object) -> TypeGuard[str]:
    """Whether it names something in the directory itself: no path, no directory, nothing that no file can be called."""
    if not isinstance(name, str) or name in ("", "..") or "\0" in name or Path(name).name != name:
        return False
    try:
        return len(name.encode("utf-8")) <= LONGEST_NAME
    except UnicodeEncodeError:  # half of a character
        return False
