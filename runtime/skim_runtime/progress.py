"""How long-running steps tell what they do; library code prints nothing by itself."""

from __future__ import annotations


class Progress:
    """Receives the progress of a long-running step; this base class ignores it."""

    def start(self, stage: str, total: int) -> None:
        """Begin a stage of `total` steps, e.g. "calibrating", 30."""

    def step(self, done: str) -> None:
        """Count one step of the current stage as done; `done` names it, e.g. "layer 3"."""

    def finish(self) -> None:
        """End the current stage."""
