"""What a step is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_check.record import Record
from device_check.target import Target
from skim_runtime.measure.report import save_json

__all__ = ["Work"]


@dataclass(frozen=True)
class Work:
    """What a step is given.

    Attributes:
        step: its name.
        target: what it runs on.
        directory: that all steps write to.
        parts: directory of what was carried in parts, if there is one.
        record: what the steps before it have found.
    """

    step: str
    target: Target
    directory: Path
    parts: Path | None
    record: Record

    @property
    def written(self) -> Path:
        """The file that `save` writes."""
        return self.directory / f"{self.step}.json"

    def save(self, found: Mapping[str, Any]) -> None:
        """Write what was found until now."""
        save_json(self.written, dict(found))
