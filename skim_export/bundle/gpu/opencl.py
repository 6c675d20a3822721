"""The kernels on an OpenCL device, through pyopencl: for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyopencl as cl

from skim_export.bundle.gpu.kernel_list import KernelEntry, load_kernel_list
from skim_export.bundle.gpu.launch import ClassRows, Launch, class_rows, device_tensors, gather, prepare, product
from skim_export.packed import PackedLinear
from skim_runtime.errors import UserError

__all__ = ["DeviceLinear", "OpenClKernels"]


@dataclass(frozen=True)
class DeviceLinear:
    """A packed linear on the device.

    Attributes:
        shape: N and K.
        rows: of each class.
        buffers: by the names of the kernels' arguments.
    """

    shape: tuple[int, int]
    rows: list[ClassRows]
    buffers: dict[str, cl.Buffer]


class OpenClKernels:
    """The kernels of a bundle. Each is compiled when it is first used.

    Args:
        directory: of the bundle, with kernels.json.
        context: of the device; by default what the environment variable PYOPENCL_CTX names, or the first one.
        options: of the OpenCL compiler.

    Raises:
        UserError: there is no OpenCL device.
    """

    def __init__(self, directory: Path, context: cl.Context | None = None, options: Sequence[str] = ()) -> None:
        self.kernels = load_kernel_list(directory)
        self.context = context or _any_context()
        self.queue = cl.CommandQueue(self.context)
        self._directory, self._options = directory, list(options)
        self._compiled: dict[str, cl.Kernel] = {}

    def upload(self, packed: PackedLinear) -> DeviceLinear:
        """Copy a packed linear to the device."""
        buffers = {name: self.buffer(tensor) for name, tensor in device_tensors(packed).items()}
        return DeviceLinear((packed.out_features, packed.in_features), class_rows(packed), buffers)

    def buffer(self, tensor: npt.NDArray[np.generic]) -> cl.Buffer:
        """Copy a tensor to the device."""
        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
        return cl.Buffer(self.context, flags, hostbuf=tensor if tensor.size else np.zeros(1, tensor.dtype))

    def matmul(self, linear: DeviceLinear, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Multiply x `[M, K]` with the transposed weights: `[M, N]`, without the bias."""
        (N, K), M = linear.shape, len(x)
        y = np.full((M, N), np.nan, np.float32)
        buffers = {
            **linear.buffers,
            "x": self.buffer(np.ascontiguousarray(x, np.float32)),
            "prepared": self.buffer(np.empty((M, -(-K // 32) * 32), np.float32)),
            "x_sum": self.buffer(np.empty(M, np.float32)),
            "y": self.buffer(y),
        }
        self.run(prepare(self.kernels, K, M), buffers)
        for launch in product(self.kernels, linear.rows, N, K, M):
            self.run(launch, buffers)
        cl.enqueue_copy(self.queue, y, buffers["y"])
        return y

    def gather(self, linear: DeviceLinear, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Rows of the weights: `[M, K]` for M ids."""
        K, M = linear.shape[1], len(ids)
        y = np.full((M, K), np.nan, np.float32)
        buffers = {**linear.buffers, "ids": self.buffer(np.ascontiguousarray(ids, np.int32)), "y": self.buffer(y)}
        for launch in gather(self.kernels, linear.rows, K, M):
            self.run(launch, buffers)
        cl.enqueue_copy(self.queue, y, buffers["y"])
        return y

    def run(self, launch: Launch, buffers: Mapping[str, cl.Buffer]) -> cl.Event:
        """Enqueue a launch."""
        entry = launch.kernel
        arguments: list[Any] = [
            np.int32(launch.scalars[a.name]) if a.elements is None else buffers[a.name] for a in entry.arguments
        ]
        threads = tuple(count * extent for count, extent in zip(launch.workgroups, entry.workgroup, strict=True))
        return self._kernel(entry)(self.queue, threads, entry.workgroup, *arguments)

    def _kernel(self, entry: KernelEntry) -> cl.Kernel:
        if entry.name not in self._compiled:
            source = (self._directory / entry.source).read_text(encoding="utf-8")
            program = cl.Program(self.context, source).build(self._options)
            self._compiled[entry.name] = cl.Kernel(program, entry.entry_point)
        return self._compiled[entry.name]


def _any_context() -> cl.Context:
    try:
        return cl.create_some_context(interactive=False)
    except cl.Error as error:
        raise UserError(f"no OpenCL device: install its driver, or PoCL for this CPU ({error})") from error
