"""The kernels of a bundle as files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from skim_export.bundle.gpu.emit import emit
from skim_export.bundle.gpu.kernel_list import KernelEntry, KernelList
from skim_export.bundle.gpu.kernels import kernels_for
from skim_export.bundle.gpu.nvcc import compile_cubins
from skim_export.bundle.gpu.target import LANGUAGES, GpuTarget
from skim_export.packed import RowClass

__all__ = ["write_kernels"]


def write_kernels(
    directory: Path, target: GpuTarget, products: Iterable[RowClass], gathered: Iterable[RowClass]
) -> KernelList:
    """Write the source of all kernels for a target, and kernels.json.

    CUDA gets one file, which nvcc compiles as a whole. The others get a file for each kernel: their drivers compile at
    run time, and so only what is used; and bindings (WGSL) or structures (Metal) of two kernels would collide.

    Args:
        directory: where the files go; it exists.
        target: of the kernels.
        products: classes of rows that are multiplied.
        gathered: classes of rows of the embedding.

    Raises:
        UserError: a kernel needs more than the target's file says that the device has, or nvcc refuses the source.
    """
    kernels = kernels_for(products, gathered, target.schedule)
    suffix = LANGUAGES[target.language]
    if target.language == "cuda":
        files = {f"kernels.{suffix}": kernels}
    else:
        files = {f"{kernel.name}.{suffix}": [kernel] for kernel in kernels}
    entries: list[KernelEntry] = []
    for name, kernels_of_file in files.items():
        source, entries_of_file = emit(kernels_of_file, target, name)
        (directory / name).write_text(source, encoding="utf-8")
        entries += entries_of_file
    binaries: dict[str, str] = {}
    notes: list[str] = []
    if target.architectures:
        binaries = compile_cubins(directory / f"kernels.{suffix}", target.architectures)
        if not binaries:
            notes.append("no compiled kernels: nvcc was not on the machine that wrote this bundle")
    kernel_list = KernelList(target.name, target.language, tuple(entries), binaries, tuple(notes))
    kernel_list.write(directory)
    return kernel_list
