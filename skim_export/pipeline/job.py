"""An export that was checked and can be run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skim_export.checkpoint import Architecture, Checkpoint
from skim_export.pipeline.budget import Budget
from skim_export.pipeline.effort import Effort
from skim_export.pipeline.quantize_linear import QuantizeOptions
from skim_export.work.resources import Resources
from skim_export.work.tasks import Executor

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """An export that was checked and can be run.

    Attributes:
        checkpoint: the model.
        architecture: of the model.
        output: the ONNX file to write.
        options: how to quantize.
        budget: of the linear layers.
        effort: what is learnt of the model beside its weights.
        calib: a text file for calibration, or None.
        seed: of the text that the model writes otherwise.
        text: sequences of the text, S, and their length, T.
        accuracy_level: of the products in the graph.
        ep: the execution provider that the graph is for, "cpu" or "cuda".
        recorded: the options as export.json tells them.
        resources: what of this machine may be used.
        executor: does what can be done by layers.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    output: Path
    options: QuantizeOptions
    budget: Budget
    effort: Effort
    calib: Path | None
    seed: int
    text: tuple[int, int]
    accuracy_level: int
    ep: str
    recorded: dict[str, Any]
    resources: Resources
    executor: Executor

    @property
    def calibrates(self) -> bool:
        """Whether the model reads a text."""
        return self.options.method.needs_statistics

    @property
    def writes_text(self) -> bool:
        """Whether the model writes that text itself."""
        return self.calibrates and self.calib is None
