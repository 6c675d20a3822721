"""Graphs that choose their rotary tables by the length of the text, as LongRoPE does.

Which tables a run uses follows from the length of its attention mask, so zeros at its end ask for those of long texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from skim_runtime.errors import UserError

__all__ = ["ROTARY_SWITCH", "rotary_switch"]

ROTARY_SWITCH = "ai.skim.rotary_switch"  # key in the graph's metadata; the value is a decimal number


def rotary_switch(file: Path, metadata: Mapping[str, str]) -> int | None:
    """The longest text with the first tables, as the graph's metadata has it; None if there is only one kind.

    Raises:
        UserError: it is no number.
    """
    value = metadata.get(ROTARY_SWITCH)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise UserError(f"{file}: {ROTARY_SWITCH} in its metadata is {value[:20]!r}; expected a number of positions")
    return int(value)
