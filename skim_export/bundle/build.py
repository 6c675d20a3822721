"""Bundles by the names of their targets."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from skim_export.bundle.bundle import build_bundle
from skim_export.bundle.lowering import read_program
from skim_export.bundle.target import KINDS, CpuTarget, load_cpu_target, read_target, target_names, target_path
from skim_export.work.place import place_for
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress
from skim_runtime.verification import REPORT_NAME, verify

if TYPE_CHECKING:
    from skim_export.pipeline.options import ExportKeywords, ExportOptions
    from skim_export.pipeline.report import ExportReport

__all__ = ["check_bundle_options", "check_target", "export_bundle", "targets_of", "write_bundle"]


def targets_of(names: Sequence[str]) -> list[str]:
    """Names of targets, with "cpu" and "gpu" replaced by all targets of that kind; each once."""
    expanded = [target for name in names for target in (target_names(name) if name in KINDS else [name])]
    return list(dict.fromkeys(expanded))


def check_target(name: str) -> None:
    """Find out what can be known to be wrong before a bundle is written.

    Raises:
        UserError: TVM is not installed, or the target is unknown or wrong.
    """
    if find_spec("tvm") is None:
        raise UserError("--target needs TVM: pip install 'skim-export[tvm]'")
    _load(name)


def check_bundle_options(options: ExportOptions) -> None:
    """Find out what a bundle can't have.

    Raises:
        UserError: layers stay floats.
    """
    if options.exclude:
        raise UserError(f"--exclude {options.exclude[0]}: bundles have no products with floats: leave it out for them")


def write_bundle(model: Path, target: str, output: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Write the bundle of an exported model for a target, and return its manifest.

    Args:
        model: directory that skim-export wrote.
        target: a name in `targets/`, or the path of a file like those there.
        output: directory to write.
        progress: told about each packed linear.

    Raises:
        UserError: TVM is not installed, target or model are wrong or damaged, or the output cannot be written.
    """
    check_target(target)
    loaded = _load(target)
    if (Path(model) / REPORT_NAME).is_file():
        verify(model, progress=progress)
    if isinstance(loaded, CpuTarget):
        from skim_export.bundle.kernels.compile import compile_kernels

        return build_bundle(model, loaded, output, partial(compile_kernels, target=loaded), progress=progress)
    from skim_export.bundle.gpu.bundle import build_gpu_bundle

    return build_gpu_bundle(model, loaded, output, progress=progress)


def export_bundle(
    model: str,
    target: str,
    output: Path,
    options: ExportOptions | None = None,
    *,
    progress: Progress | None = None,
    **keywords: Unpack[ExportKeywords],
) -> tuple[ExportReport, dict[str, Any]]:
    """Quantize a model and write it as a bundle.

    Args:
        model: alias of a recipe, Hugging Face id, directory, or GGUF file.
        target: a name in `targets/`, or the path of a file like those there.
        output: directory to write.
        options: of the export, see `skim_export.pipeline.export.export`.
        progress: told of every step.
        keywords: options by their names, in place of those in `options`.

    Returns:
        The report of the export and the bundle's manifest.

    Raises:
        UserError: something given is wrong; nothing was written.
    """
    from skim_export.pipeline.options import ExportOptions

    options = replace(options or ExportOptions(), **keywords)
    check_bundle_options(options)
    check_target(target)
    from skim_export.pipeline.export import prepare, run

    exported = place_for(output, "model")  # where a tuning that was interrupted finds its state again
    try:
        options = replace(options, force=True)
        job = prepare(model, exported / "model.onnx", options, read=read_program, progress=progress)
        report = run(job, progress)
        return report, write_bundle(exported, target, output, progress=progress)
    finally:
        shutil.rmtree(exported, ignore_errors=True)


def _load(name: str) -> Any:
    if read_target(target_path(name))["kind"] == "cpu":
        return load_cpu_target(name)
    from skim_export.bundle.gpu.target import load_gpu_target

    return load_gpu_target(name)
