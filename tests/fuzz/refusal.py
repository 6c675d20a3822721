"""What a refusal must be like."""

from __future__ import annotations

from skim_runtime import UserError

MOST_CHARACTERS = 2000  # names that an input gives are in it


def check_refusal(error: UserError) -> None:
    """Raises `AssertionError` if it is not one line that says something."""
    text = str(error)
    assert text.strip(), "a refusal without a word"
    assert len(text.splitlines()) == 1, f"more than one line: {text}"
    assert len(text) < MOST_CHARACTERS, f"{len(text)} characters: {text}"
