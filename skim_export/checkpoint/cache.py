"""Where models that had to be converted are kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from skim_runtime.errors import UserError

__all__ = ["cache_directory", "cached_directory"]


def cache_directory() -> Path:
    """`$SKIM_CACHE`, or `skim-export` in the user's cache directory."""
    if override := os.environ.get("SKIM_CACHE"):
        return Path(override).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "skim-export"


def cached_directory(final: Path, model: str, make: Callable[[Path], None]) -> Path:
    """A directory of the cache, made unless it is there; whoever finds it finds it whole.

    Args:
        final: the directory, right inside the cache.
        model: what it holds, for messages.
        make: writes it to the path that it gets; beside that there is room for other files.

    Raises:
        UserError: the cache cannot be written, or `make` fails with one.
    """
    cache = final.parent
    if final.is_dir():
        return final
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{model}-") as scratch:
            made = Path(scratch) / "checkpoint"
            make(made)
            try:
                os.rename(made, final)  # noqa: PTH104  (Path.rename would say the same, but not that it is atomic)
            except OSError:
                if not final.is_dir():  # otherwise another process was faster, with the same result
                    raise
    except OSError as error:
        raise UserError(f"cannot write model {model} to the cache {cache}: {error.strerror or error}") from error
    return final
