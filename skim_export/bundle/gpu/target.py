"""GPUs that kernels are made for: files of `kind = "gpu"` in `skim_export/bundle/targets`. A new one needs no code."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skim_export.bundle.gpu.schedule import Schedule
from skim_runtime.errors import UserError

__all__ = ["LANGUAGES", "TARGETS", "GpuTarget", "load_gpu_target"]

TARGETS = Path(__file__).parent.parent / "targets"
LANGUAGES = {"cuda": "cu", "opencl": "cl", "metal": "metal", "webgpu": "wgsl"}  # and the suffixes of their files
LIMITS = ("max_num_threads", "max_shared_memory_per_block")


@dataclass(frozen=True)
class GpuTarget:
    """A GPU, or a programming interface to many.

    Attributes:
        name: of its file.
        description: for people.
        tvm: the target as TVM takes it, with the limits `max_num_threads` and `max_shared_memory_per_block`.
        schedule: of its kernels.
        architectures: that CUDA kernels are compiled for ahead of time, as nvcc calls them.
    """

    name: str
    description: str
    tvm: dict[str, Any]
    schedule: Schedule
    architectures: tuple[str, ...]

    @property
    def language(self) -> str:
        """The language of the kernels, a key of `LANGUAGES`."""
        return str(self.tvm["kind"])


def load_gpu_target(path: Path) -> GpuTarget:
    """Read a target's file.

    Raises:
        UserError: a key is missing or wrong.
    """
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    missing = [key for key in ("description", "kind", "target", "schedule") if key not in table]
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing")
    if table["kind"] != "gpu":
        raise UserError(f"{path}: kind = {table['kind']!r} is no GPU")
    tvm = table["target"]
    if tvm.get("kind") not in LANGUAGES:
        raise UserError(f"{path}: target.kind = {tvm.get('kind')!r} must be one of {', '.join(LANGUAGES)}")
    for limit in LIMITS:
        if not isinstance(tvm.get(limit), int):
            raise UserError(f"{path}: target.{limit} must say what the device has, got {tvm.get(limit)!r}")
    return GpuTarget(
        name=path.stem,
        description=table["description"],
        tvm=tvm,
        schedule=Schedule.of(table["schedule"], f"{path}: schedule"),
        architectures=tuple(table.get("architectures", ())),
    )
