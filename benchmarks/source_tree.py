"""Importing the packages from the source tree where they are not installed: some benchmarks need no more of them."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

__all__ = ["ROOT", "make_importable"]

ROOT = Path(__file__).resolve().parents[1]
# Where packages lie under ROOT; an installation has them under their names.
PACKAGES = {"skim_runtime": "runtime", "skim_export": "skim_export"}


def make_importable() -> None:
    """Make `skim_export` and `skim_runtime` importable: what is installed, or else the source tree."""
    if all(find_spec(name) for name in PACKAGES):
        return
    for name, directory in PACKAGES.items():
        spec = spec_from_file_location(name, ROOT / directory / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
