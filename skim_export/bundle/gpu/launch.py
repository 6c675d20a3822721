"""Which kernels a product takes, with which arguments: the same for every programming interface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skim_export.bundle.gpu.kernel_list import KernelEntry, KernelList
from skim_export.packed import PackedLinear, Section

__all__ = ["ClassRows", "Launch", "class_rows", "device_tensors", "gather", "prepare", "product"]


@dataclass(frozen=True)
class ClassRows:
    """The rows of one class within the tensors of a packed linear.

    Attributes:
        row_class: name of the class.
        scalars: the kernels' arguments that say where it lies: rows, row_start, code_start (in 32-bit words),
            codebook_start (in entries) and scale_start (in floats).
    """

    row_class: str
    scalars: dict[str, int]


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel; its buffers are found by the names of its arguments.

    Attributes:
        kernel: to be launched.
        scalars: values of its other arguments.
        workgroups: along each axis of the grid.
    """

    kernel: KernelEntry
    scalars: dict[str, int]
    workgroups: tuple[int, ...]


def device_tensors(packed: PackedLinear) -> dict[str, npt.NDArray[np.generic]]:
    """The tensors that the kernels read, by the names of the arguments.

    As in the bundle's weights.bin: bytes of codes and codebook as in docs/format.md, filled up to whole words, all
    else as float32 or int32.
    """
    row_index = packed.row_order().astype(np.int32)
    ones = np.ones(packed.in_features, np.float32)
    return {
        "codes": packed.codes.view(np.uint32),
        "codebook": _words(packed.codebook),
        "row_scale": packed.row_scale.astype(np.float32),
        "row_index": row_index,
        "stored_row": np.argsort(row_index).astype(np.int32),
        "column_scale": packed.column_scale.astype(np.float32) if packed.column_scale.size else ones,
    }


def _words(tensor: npt.NDArray[np.generic]) -> npt.NDArray[np.uint32]:
    data = tensor.view(np.uint8)
    return np.pad(data, (0, -data.size % 4)).view(np.uint32)


def class_rows(packed: PackedLinear) -> list[ClassRows]:
    """The classes that a packed linear has rows of, in the order in which these are stored."""
    return [ClassRows(section.row_class.name, _scalars(section)) for section in packed.sections()]


def _scalars(section: Section) -> dict[str, int]:
    return {
        "rows": section.count,
        "row_start": section.row_start,
        "code_start": section.codes_start // 4,
        "codebook_start": section.codebook_start,
        "scale_start": section.row_scale_start,
    }


def prepare(kernels: KernelList, K: int, M: int) -> Launch:
    """The launch that turns activations into what the products read."""
    return _launch(kernels.only("prepare"), {"K": K, "M": M})


def product(kernels: KernelList, rows: list[ClassRows], N: int, K: int, M: int) -> Iterator[Launch]:
    """The launches of a product with M tokens; they write to different places, in any order."""
    for part in rows:
        kernel = kernels.product(part.row_class, M)
        yield _launch(kernel, {**part.scalars, "K": K, "M": M, "y_stride": N})


def gather(kernels: KernelList, rows: list[ClassRows], K: int, M: int) -> Iterator[Launch]:
    """The launches that gather M rows."""
    for part in rows:
        yield _launch(kernels.only("gather", part.row_class), {**part.scalars, "K": K, "M": M})


def _launch(kernel: KernelEntry, values: dict[str, int]) -> Launch:
    scalars = {a.name: values[a.name] for a in kernel.arguments if a.elements is None}
    return Launch(kernel, scalars, kernel.workgroups(values))
