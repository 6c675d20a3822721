"""Files that come with a package, wherever its installation keeps them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

__all__ = ["installed_file"]


def installed_file(package: str, name: str) -> Path:
    """Path of a file that was built for a package, which need not exist.

    An editable installation has two directories for a package: that of the sources, and that of what was built.

    Args:
        package: name of an imported package.
        name: path of the file within it.
    """
    candidates = [Path(directory) / name for directory in import_module(package).__path__]
    return next((path for path in candidates if path.exists()), candidates[0])
