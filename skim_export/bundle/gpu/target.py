"""GPU targets: TOML files in `skim_export/bundle/targets`. A new one needs no code."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from skim_export.bundle.gpu.schedule import Decode, Prefill, Schedule
from skim_runtime.errors import UserError

__all__ = ["TARGETS", "GpuTarget", "load_target"]

TARGETS = Path(__file__).parent.parent / "targets"

Section = TypeVar("Section", Decode, Prefill)


@dataclass(frozen=True)
class GpuTarget:
    """A GPU, or a programming interface of many.

    Attributes:
        name: of the target.
        description: for people.
        tvm: TVM's target as a dictionary; `kind` is the language: cuda, opencl, metal or webgpu.
        schedule: of its kernels.
        architectures: that kernels in CUDA are compiled for ahead of time, as nvcc calls them.
    """

    name: str
    description: str
    tvm: dict[str, Any]
    schedule: Schedule
    architectures: tuple[str, ...] = ()

    @property
    def language(self) -> str:
        """The language of the kernels: cuda, opencl, metal or webgpu."""
        return str(self.tvm["kind"])


def load_target(path: Path) -> GpuTarget:
    """Read a target's file.

    Raises:
        UserError: a number is missing, unknown or not positive, or does not fit the others.
    """
    entry = tomllib.loads(path.read_text(encoding="utf-8"))
    schedule = entry["schedule"]
    decode = tuple(_section(Decode, table, f"{path}: schedule.decode") for table in schedule["decode"])
    prefill = _section(Prefill, schedule["prefill"], f"{path}: schedule.prefill")
    for d in decode:
        _power_of_2(d.threads, f"{path}: schedule.decode.threads")
    _power_of_2(prefill.blocks, f"{path}: schedule.prefill.blocks")
    _power_of_2(schedule["threads"], f"{path}: schedule.threads")
    if prefill.rows % prefill.row_threads or prefill.tokens % prefill.token_threads:
        raise UserError(f"{path}: schedule.prefill: rows and tokens must be multiples of row_threads and token_threads")
    return GpuTarget(
        path.stem,
        entry["description"],
        entry["target"],
        Schedule(decode, prefill, schedule["threads"]),
        tuple(entry.get("architectures", ())),
    )


def _section(kind: type[Section], table: dict[str, Any], where: str) -> Section:
    names = [field.name for field in fields(kind)]
    if sorted(table) != sorted(names):
        raise UserError(f"{where} must give {', '.join(names)}; it gives {', '.join(table)}")
    for name, value in table.items():
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{where}.{name} must be a positive integer, got {value!r}")
    return kind(**table)


def _power_of_2(value: int, where: str) -> None:
    if value < 1 or value & (value - 1):
        raise UserError(f"{where} must be a power of 2, got {value}")
