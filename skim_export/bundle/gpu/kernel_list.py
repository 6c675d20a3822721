"""kernels.json: what a host program must know to launch the kernels of a bundle, without TVM."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skim_export.work.files import write_json

__all__ = ["FILE", "Argument", "GridAxis", "KernelEntry", "KernelList", "load_kernel_list"]

FILE = "kernels.json"


@dataclass(frozen=True)
class Argument:
    """An argument of a kernel.

    Attributes:
        name: of the argument.
        dtype: of a scalar, or of the elements of a buffer.
        elements: of a buffer, as a formula in the kernel's scalars (`/` rounds down) and N; None for a scalar.
        written: whether the kernel writes to the buffer.
    """

    name: str
    dtype: str
    elements: str | None
    written: bool


@dataclass(frozen=True)
class GridAxis:
    """An axis of the grid: ceil(`size` / `per_workgroup`) workgroups.

    Attributes:
        size: name of a scalar argument.
        per_workgroup: how much of it a workgroup does.
    """

    size: str
    per_workgroup: int


@dataclass(frozen=True)
class KernelEntry:
    """A kernel.

    Attributes:
        name: of the kernel.
        operation: prepare, decode, prefill or gather.
        row_class: name of the class of rows that it reads; None if it reads none.
        source: file in the same directory.
        entry_point: its name in that file.
        arguments: in the order of the source, buffers first.
        grid: workgroups along x, and y if there are two.
        workgroup: threads along x, and y if there are two.
        shared_bytes: shared memory of a workgroup, declared in the source.
    """

    name: str
    operation: str
    row_class: str | None
    source: str
    entry_point: str
    arguments: tuple[Argument, ...]
    grid: tuple[GridAxis, ...]
    workgroup: tuple[int, ...]
    shared_bytes: int

    def workgroups(self, scalars: dict[str, int]) -> tuple[int, ...]:
        """Workgroups along each axis of the grid."""
        return tuple(-(-scalars[axis.size] // axis.per_workgroup) for axis in self.grid)


@dataclass(frozen=True)
class KernelList:
    """All kernels of a bundle.

    Attributes:
        target: name of the target.
        language: cuda, opencl, metal or webgpu.
        kernels: all of them.
        binaries: compiled kernels: architecture -> file.
        notes: what is missing, in words.
    """

    target: str
    language: str
    kernels: tuple[KernelEntry, ...]
    binaries: dict[str, str]
    notes: tuple[str, ...]

    def product(self, row_class: str, tokens: int) -> KernelEntry:
        """The kernel that multiplies rows of a class with so many tokens."""
        fitting = [
            (kernel.grid[1].per_workgroup, kernel)
            for kernel in self.kernels
            if kernel.row_class == row_class and kernel.operation == "decode" and kernel.grid[1].per_workgroup >= tokens
        ]
        if fitting:
            return min(fitting, key=lambda pair: pair[0])[1]
        return self.only("prefill", row_class)

    def only(self, operation: str, row_class: str | None = None) -> KernelEntry:
        """The kernel for an operation that has one for each class."""
        return next(k for k in self.kernels if (k.operation, k.row_class) == (operation, row_class))

    def write(self, directory: Path) -> None:
        """Write kernels.json."""
        write_json(directory / FILE, asdict(self))


def load_kernel_list(directory: Path) -> KernelList:
    """Read kernels.json of a bundle."""
    entry: dict[str, Any] = json.loads((directory / FILE).read_text(encoding="utf-8"))
    kernels = []
    for kernel in entry.pop("kernels"):
        arguments = tuple(Argument(**a) for a in kernel.pop("arguments"))
        grid = tuple(GridAxis(**a) for a in kernel.pop("grid"))
        kernels.append(KernelEntry(arguments=arguments, grid=grid, workgroup=tuple(kernel.pop("workgroup")), **kernel))
    return KernelList(kernels=tuple(kernels), notes=tuple(entry.pop("notes")), **entry)
