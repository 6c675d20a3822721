"""The dependency of skim-export on skim-runtime, both of which this repository holds.

`pip install .` in a checkout brings the runtime that lies there. An editable installation needs one that is editable,
too, which only the command line can ask for (`pip install -e ./runtime -e .`). Packages that are built from a source
distribution, as those for an index are, name a version.

Called by scikit-build-core, see `[[tool.dynamic-metadata]]` in pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["RuntimeDependency"]

RUNTIME = Path(__file__).resolve().parents[1] / "runtime"  # a source distribution has none


class RuntimeDependency:
    """A provider of dynamic metadata (https://pypi.org/project/dynamic-metadata)."""

    def __init__(self) -> None:
        self._editable = False

    def build_state(self, build_state: str) -> None:
        """Told what is being built."""
        self._editable = build_state.endswith("editable")

    def dynamic_metadata(self, settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, list[str]]:
        """What is added to the dependencies in pyproject.toml."""
        if RUNTIME.is_dir() and not self._editable:
            return {"dependencies": [f"skim-runtime @ {RUNTIME.as_uri()}"]}
        return {"dependencies": [f"skim-runtime=={project['version']}"]}
