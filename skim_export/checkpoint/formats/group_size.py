"""How many columns share a scale, in formats whose configuration has one number for all modules."""

from __future__ import annotations

from .stored_module import Settings

__all__ = ["group_size"]

ALL = -1  # columns


def group_size(settings: Settings, columns: int) -> int:
    """Columns of a group, of a weight with so many columns.

    Raises:
        UserError: config.json says nothing sensible.
    """
    names = ("group_size", "q_group_size")
    return columns if settings.get(*names) == ALL else settings.whole(*names)
