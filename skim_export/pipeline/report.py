"""What an export did: for people on the terminal, for machines in export.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from skim_export.checkpoint import Model
from skim_export.packed import FORMAT_VERSION
from skim_export.pipeline.budget import excluded_weights, unpacked_parameters
from skim_export.work.files import sha256, write_json
from skim_runtime.errors import UserError
from skim_runtime.verification import REPORT_NAME, verify

__all__ = ["ExportReport", "Part", "finished", "model_parts", "options_of", "versions", "write_report"]

TUNED = "tuned"  # among the options of export.json: what tuning did
RECORDED_PACKAGES = (
    "skim-export",
    "skim-runtime",
    "torch",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxruntime-genai",
    "numpy",
)


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
        found: whether it was there already, as the same export had left it.
        error: of its logits, relative to those of transformers with the same weights; None if they were not compared.
    """

    path: Path
    parts: list[Part]
    seconds: float
    found: bool = False
    error: float | None = None


def versions() -> dict[str, str]:
    """The versions of the packages that an export depends on."""
    return {name: _version(name) for name in RECORDED_PACKAGES}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"  # but run from a source tree


def write_report(
    stage: Path,
    checkpoint: str,
    text: str | None,
    options: dict[str, Any],
    parts: Iterable[Part],
    linears: list[dict[str, Any]],
) -> None:
    """Write export.json beside the files that it lists. It holds no times, so that equal exports have equal bytes.

    Args:
        stage: directory of the files.
        checkpoint: digest of the model that was quantized.
        text: SHA-256 of the calibration text, if a file was given.
        options: of the export.
        parts: what each part of the model takes.
        linears: the report of every packed linear.
    """
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(stage.iterdir())
        if path.is_file()
    }
    value = {
        "format_version": FORMAT_VERSION,
        "versions": versions(),
        "checkpoint": checkpoint,
        "calibration_text": text,
        "options": options,
        "parts": [part.as_json() for part in parts],
        "layers": linears,
        "files": files,
    }
    write_json(stage / REPORT_NAME, value)


def options_of(directory: Path) -> dict[str, Any] | None:
    """The options of the export in a directory, as `write_report` was given them but for tuning; None if unknown."""
    try:
        options = json.loads((directory / REPORT_NAME).read_bytes())["options"]
        return {name: value for name, value in options.items() if name != TUNED}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def finished(output: Path, checkpoint: str, text: str | None, options: dict[str, Any]) -> ExportReport | None:
    """What an export reports that would do nothing new: it is in its place, whole, and made from the same.

    Args:
        output: the ONNX file that it writes.
        checkpoint: see `write_report`, like the others.
        text: of the calibration text.
        options: of the export, but for tuning.
    """
    if options_of(output.parent) != json.loads(json.dumps(options)):
        return None
    report = json.loads((output.parent / REPORT_NAME).read_bytes())
    wanted = {"format_version": FORMAT_VERSION, "versions": versions(), "checkpoint": checkpoint}
    if any(report.get(name) != value for name, value in {**wanted, "calibration_text": text}.items()):
        return None
    try:
        if output not in verify(output.parent):
            return None
        parts = [Part(one["name"], one["weights"], one["bytes"], one["code_bits"]) for one in report["parts"]]
    except (UserError, KeyError, TypeError):
        return None
    return ExportReport(output, parts, 0.0, found=True)


def model_parts(model: Model, linears: list[dict[str, Any]], path: Path, float_bytes: int) -> list[Part]:
    """What the parts and the whole model take, from the files themselves.

    Args:
        model: what is not packed is read from it.
        linears: the report of every packed linear.
        path: the ONNX file.
        float_bytes: bytes of a weight that is not packed.
    """
    embeddings = {linear.name for linear in model.architecture.vocabulary_linears}
    total = path.stat().st_size + path.with_name(path.name + ".data").stat().st_size
    parts = []
    for name, chosen in (
        ("linear layers", [linear for linear in linears if linear["name"] not in embeddings]),
        ("embedding and head", [linear for linear in linears if linear["name"] in embeddings]),
    ):
        if not chosen:
            continue
        weights = [linear["shape"][0] * linear["shape"][1] for linear in chosen]
        code_bits = sum(w * linear["code_bits"] for w, linear in zip(weights, chosen, strict=True)) / sum(weights)
        parts.append(Part(name, sum(weights), sum(linear["bytes"] for linear in chosen), code_bits))
    if excluded := excluded_weights(model):
        parts.append(Part("excluded layers", excluded, float_bytes * excluded, None))
    rest = unpacked_parameters(model)
    parts.append(Part("norms, tables and graph", rest, total - sum(part.nbytes for part in parts), None))
    parts.append(Part("whole model", sum(part.weights for part in parts), total, None))
    return parts
