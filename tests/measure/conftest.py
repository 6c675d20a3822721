"""The tiny exports that bundles are tested with."""

from ..bundle.conftest import tiny

__all__ = ["tiny"]
