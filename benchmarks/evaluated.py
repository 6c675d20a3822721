"""What figures of quality say of the texts that they were measured on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skim_runtime.text_file import text_facts

__all__ = ["ENOUGH_TOKENS", "texts_and_warnings"]

ENOUGH_TOKENS = 16384  # of a text: fewer leave a perplexity with an error of several percent


def texts_and_warnings(paths: Sequence[Path], tokens: int) -> dict[str, Any]:
    """Entries of a report: the texts by name, of which the first `tokens` tokens are measured, and what is wrong.

    What is wrong is a warning on the terminal, too.
    """
    wrong = []
    if tokens < ENOUGH_TOKENS:
        wrong.append(f"--tokens {tokens}: below {ENOUGH_TOKENS} a perplexity says little; see its standard error")
        warnings.warn(wrong[0], stacklevel=2)
    return {"texts": {path.name: {**text_facts(path), "tokens": tokens} for path in paths}, "warnings": wrong}
