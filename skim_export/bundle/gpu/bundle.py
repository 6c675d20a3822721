"""Writing the bundle of a GPU: kernels as source, and the weights that they read.

There is no program to run it: a host program launches the kernels as kernels.json says (docs/gpu-kernels.md).
"""

from __future__ import annotations

from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from skim_export.bundle.bundle import MANIFEST, WEIGHTS, copy_model_files, files_of, write_weights
from skim_export.bundle.gpu.target import GpuTarget
from skim_export.bundle.gpu.write import write_kernels
from skim_export.bundle.layout import LinearLayout
from skim_export.bundle.lowering import read_program
from skim_export.work.files import staged_directory, write_json
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.progress import Progress

__all__ = ["build_gpu_bundle"]


def build_gpu_bundle(
    model: Path, target: GpuTarget, output: Path, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the kernels and weights of an exported model for a GPU, and return the manifest.

    Args:
        model: directory that skim-export wrote.
        target: to emit kernels for.
        output: directory to write; in one that exists, files of the same names are replaced.
        progress: told about each packed linear.

    Raises:
        UserError: the model is damaged or not understood, a kernel does not fit the GPU, or the disk is full.
    """
    program = read_program(ModelDirectory.open(model).model_file)
    with staged_directory(output, MANIFEST) as stage:
        weights = write_weights(program, stage / WEIGHTS, progress or Progress())
        classes = {rows.row_class for layout in weights.linears.values() for rows in layout.rows}
        gathered = {rows.row_class for unit in program.gathered for rows in weights.linears[unit].rows}
        write_kernels(stage, target, sorted(classes), sorted(gathered))
        copy_model_files(model, stage)
        manifest = {
            "skim_export": metadata.version("skim-export"),
            "target": target.name,
            "classes": [row_class.name for row_class in sorted(classes)],
            "weights": {"bytes": weights.size, "read_bytes": weights.read_bytes},
            "linears": {unit: _offsets(layout) for unit, layout in weights.linears.items()},
            "tensors": dict(weights.tensors),
            "files": files_of(stage),
        }
        write_json(stage / MANIFEST, manifest)
    return manifest


def _offsets(layout: LinearLayout) -> dict[str, Any]:
    """Where the tensors of a packed linear lie in weights.bin."""
    fields = asdict(layout)
    fields["rows"] = [{**asdict(rows), "row_class": rows.row_class.name} for rows in layout.rows]
    return fields
