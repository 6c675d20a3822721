"""An export that was checked and can be run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skim_export.checkpoint import Linear, Model
from skim_export.pipeline.budget import Budget
from skim_export.pipeline.calibration_text import CalibrationText
from skim_export.pipeline.effort import Effort
from skim_export.pipeline.free_rows import FreeRows
from skim_export.pipeline.layer_choice import kept_widths
from skim_export.pipeline.options import ExportOptions
from skim_export.pipeline.quantize_linear import QuantizeOptions
from skim_export.quantize import Method
from skim_export.work.resources import Resources
from skim_export.work.tasks import Executor

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """An export that was checked and can be run: what it was told, and what follows from that.

    Attributes:
        name: the model as it was named.
        output: the ONNX file to write.
        options: what the export was told, its budget stated in any case.
        model: the model.
        budget: of the linear layers.
        quantizing: how to quantize a layer.
        resources: what of this machine may be used.
        executor: does what can be done by layers.
    """

    name: str
    output: Path
    options: ExportOptions
    model: Model
    budget: Budget
    quantizing: QuantizeOptions
    resources: Resources
    executor: Executor

    @classmethod
    def of(
        cls, name: str, output: Path, options: ExportOptions, model: Model, resources: Resources, executor: Executor
    ) -> Job:
        """The job that follows from what was told; arguments are as in the attributes.

        Raises:
            UserError: the budget is too small, or widths that were given are wrong or leave too little to the others.
        """
        kept = kept_widths(model, options.keep or {})
        quantizing = QuantizeOptions(options.chosen.method, options.head_width, options.codebook, kept)
        budget = Budget.of(model, options, quantizing)
        job = cls(name, output, options, model, budget, quantizing, resources, executor)
        FreeRows.of(job.budgeted, quantizing, budget)  # refuses widths that leave too little to the other rows
        return job

    @property
    def effort(self) -> Effort:
        """What is learnt of the model beside its weights."""
        return self.options.chosen

    @property
    def method(self) -> Method:
        """What to quantize with."""
        return self.effort.method

    @property
    def budgeted(self) -> list[Linear]:
        """The linear layers that the budget is for."""
        return self.quantizing.budgeted(self.model.architecture)

    @property
    def free_rows(self) -> FreeRows:
        """Those of their rows that were given no width."""
        return FreeRows.of(self.budgeted, self.quantizing, self.budget)

    @property
    def text(self) -> CalibrationText:
        """What the model reads, if it calibrates."""
        return CalibrationText(self.options.calibration_file, self.options.seed, self.effort.tune)

    @property
    def calibrates(self) -> bool:
        """Whether the model reads a text."""
        return self.method.needs_statistics

    @property
    def writes_text(self) -> bool:
        """Whether the model writes that text itself."""
        return self.calibrates and self.text.file is None

    @property
    def recorded(self) -> dict[str, Any]:
        """What export.json tells of model and options; an interrupted export goes on only with the same."""
        return {"model": self.name, **self.options.recorded()}
