"""Where the step `build` puts libraries, and how the packages find them there, whatever is installed."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

__all__ = ["OPERATORS", "SOLVER", "built", "use_built"]

OPERATORS = ("skim_runtime", "lib/libskim_ops.so")
SOLVER = ("skim_export.quantize", "libskim_solver.so")


def built(directory: Path, library: tuple[str, str]) -> Path:
    """The place of a library below the output directory."""
    package, name = library
    return directory / "built" / package / name


def use_built(directory: Path) -> None:
    """Let the packages look there first (`skim_runtime.installed.installed_file`)."""
    for name, _ in (OPERATORS, SOLVER):
        package = import_module(name)
        place = str(directory / "built" / name)
        if place not in package.__path__:
            package.__path__.insert(0, place)
