"""Source code of kernels, and their entries in kernels.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.ir import PointerType
from tvm.tirx.build import codegen_build

from skim_export.bundle.gpu.kernel import Kernel
from skim_export.bundle.gpu.kernel_list import Argument, KernelEntry
from skim_export.bundle.gpu.target import GpuTarget
from skim_export.packed import LevelKind, RowClass
from skim_runtime.errors import UserError

__all__ = ["emit"]


def emit(kernels: Sequence[Kernel], target: GpuTarget, file: str) -> tuple[str, list[KernelEntry]]:
    """The source code of some kernels for one target, and their entries.

    Args:
        kernels: to be compiled, with different names.
        target: of the kernels.
        file: name of the file that the source will be written to.

    Raises:
        UserError: a kernel needs more than the target's file says that the device has.
    """
    device = tvm.target.Target(target.tvm).with_host(tvm.target.Target({"kind": "llvm"}))
    module = tvm.IRModule({kernel.name: kernel.function for kernel in kernels})
    module = tvm.transform.Sequential(_lowering(device))(module)
    functions = {str(function.attrs["global_symbol"]): function for function in module.functions.values()}
    entries = []
    for kernel in kernels:
        entry_point = f"{kernel.name}_kernel"  # TVM's name for the device's half of a function
        function = functions[entry_point]
        entries.append(
            KernelEntry(
                name=kernel.name,
                operation=kernel.operation,
                row_class=None if kernel.row_class is None else kernel.row_class.name,
                source=file,
                entry_point=entry_point,
                arguments=tuple(_argument(parameter, kernel) for parameter in function.params),
                grid=kernel.grid,
                workgroup=kernel.workgroup,
                shared_bytes=int(s_tir.analysis.calculate_allocated_bytes(function)["main"].get("shared", 0)),
            )
        )
    for entry in entries:
        _check_limits(entry, target)
    return codegen_build(module, device).inspect_source(), entries


def _lowering(device: Any) -> list[Any]:
    """TVM's own pipelines would insert barriers of their own, and make a host program that needs TVM's runtime."""
    return [
        tirx.transform.BindTarget(device),
        tirx.transform.SplitHostDevice(),
        tirx.transform.Filter(lambda function: "tirx.kernel_launch_params" in function.attrs),
        tirx.transform.LowerIntrin(),
    ]


def _check_limits(entry: KernelEntry, target: GpuTarget) -> None:
    for what, need, limit in (
        ("threads", math.prod(entry.workgroup), "max_num_threads"),
        ("bytes of shared memory", entry.shared_bytes, "max_shared_memory_per_block"),
    ):
        if need > target.tvm[limit]:
            raise UserError(
                f"target {target.name}: {entry.name} needs {need} {what}, more than {limit} = {target.tvm[limit]}; "
                f"lower the numbers of its schedule"
            )


def _argument(parameter: Any, kernel: Kernel) -> Argument:
    """TVM orders arguments, buffers before scalars, and appends _ptr to the names of buffers."""
    if not isinstance(parameter.ty, PointerType):
        return Argument(parameter.name, str(parameter.ty.dtype), None, False)
    name = parameter.name.removesuffix("_ptr")
    elements = _elements(name, kernel)
    written = name == "y" or (kernel.operation == "prepare" and name in ("prepared", "x_sum"))
    return Argument(name, str(parameter.ty.element_type.dtype), elements, written)


def _elements(name: str, kernel: Kernel) -> str:
    """How many elements a buffer must have, as a formula in the kernel's scalars and N."""
    formulas = {
        "column_scale": "K",
        "ids": "M",
        "prepared": "M * ((K + 31) / 32 * 32)",
        "row_index": "row_start + rows",
        "stored_row": "N",
        "x": "M * K",
        "x_sum": "M",
        "y": "M * K" if kernel.operation == "gather" else "M * y_stride",
    }
    if kernel.row_class is not None:
        formulas |= _weight_elements(kernel.row_class)
    return formulas[name]


def _weight_elements(row_class: RowClass) -> dict[str, str]:
    entries_per_word = 4 if row_class.codebook == "int8" else 2
    return {
        "codes": f"code_start + rows * {row_class.bits} * ((K + 31) / 32)",
        "codebook": f"(codebook_start + rows * {row_class.entries} + {entries_per_word - 1}) / {entries_per_word}",
        "row_scale": "scale_start + rows * 2" if row_class.kind == LevelKind.AFFINE else "scale_start + rows",
    }
