"""GPUs that kernels are made for: files of `kind = "gpu"` in `skim_export/bundle/targets`. A new one needs no code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from skim_export.bundle.gpu.schedule import Schedule
from skim_export.bundle.target import read_target, target_names, target_path
from skim_runtime.errors import UserError

__all__ = ["LANGUAGES", "GpuTarget", "load_gpu_target"]

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


def load_gpu_target(name: str) -> GpuTarget:
    """A target by name, or from a file of one's own.

    Args:
        name: a name in `targets/`, or the path of a .toml file like those there.

    Raises:
        UserError: there is no such target, it is no GPU, or its file is wrong.
    """
    path = target_path(name)
    table = read_target(path)
    missing = [key for key in ("description", "kind", "target", "schedule") if key not in table]
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing")
    if table["kind"] != "gpu":
        raise UserError(f"target {name} is no GPU; these are: {', '.join(target_names('gpu'))}")
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
