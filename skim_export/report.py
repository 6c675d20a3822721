"""What an export did: for people on the terminal, for machines in export.json."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from skim_export.files import sha256, write_json
from skim_export.packed import FORMAT_VERSION

__all__ = ["ExportReport", "Part", "write_report"]

REPORT_NAME = "export.json"
PACKAGES = ("skim-export", "torch", "transformers", "onnx", "onnx-ir", "onnxruntime-genai", "numpy")


@dataclass(frozen=True)
class Part:
    """One part of the model and what it takes.

    Attributes:
        name: what the part is.
        weights: its number of weights.
        nbytes: all bytes stored for it.
        code_bits: average width of its codes; None where there are none.
    """

    name: str
    weights: int
    nbytes: int
    code_bits: float | None

    @property
    def effective_bits(self) -> float:
        """All bits stored over the number of weights."""
        return 8 * self.nbytes / self.weights

    def as_json(self) -> dict[str, Any]:
        """The part as plain data."""
        return {
            "name": self.name,
            "weights": self.weights,
            "bytes": self.nbytes,
            "code_bits": self.code_bits,
            "effective_bits": self.effective_bits,
        }


@dataclass(frozen=True)
class ExportReport:
    """The result of an export.

    Attributes:
        path: the ONNX file.
        parts: what each part of the model takes; the last is the whole model.
        seconds: the time that it took.
    """

    path: Path
    parts: list[Part]
    seconds: float


def write_report(stage: Path, options: dict[str, Any], parts: Iterable[Part], layers: list[dict[str, Any]]) -> None:
    """Write export.json beside the files that it lists. It holds no times, so that equal exports have equal bytes."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(stage.iterdir())
        if path.is_file()
    }
    value = {
        "format_version": FORMAT_VERSION,
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "options": options,
        "parts": [part.as_json() for part in parts],
        "layers": layers,
        "files": files,
    }
    write_json(stage / REPORT_NAME, value)
