"""From PrimFuncs to an object file with a plain C ABI, which needs nothing of TVM."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tvm
from tvm import tirx

from skim_export.bundle.abi import Kernels, Product, gather_name, prepare_name
from skim_export.bundle.kernels.arithmetic import FLOATS, INTEGERS
from skim_export.bundle.kernels.gather import gather
from skim_export.bundle.kernels.lookup import FLOAT_LOOKUPS, LOOKUPS, Lookups
from skim_export.bundle.kernels.matmul import matmul
from skim_export.bundle.kernels.prepare import prepare
from skim_export.bundle.schedule import Schedule
from skim_export.bundle.target import CpuTarget
from skim_export.packed import RowClass
from skim_runtime.errors import UserError

__all__ = ["Kernel", "compile_functions", "compile_kernels", "compile_scheduled"]


class Kernel(NamedTuple):
    """What a kernel is compiled from; products that agree in it share the kernel."""

    row_class: RowClass
    integer: bool
    schedule: Schedule


def compile_kernels(products: Iterable[Product], gathers: Iterable[RowClass], target: CpuTarget) -> Kernels:
    """The kernels of a bundle, and `skim_prepare` and `skim_prepare_integer`, for a target.

    Args:
        products: to multiply.
        gathers: the classes whose rows are also read one by one.
        target: what to compile for.

    Raises:
        UserError: the target's file names a lookup or an arithmetic that there is not, or TVM does not accept it.
    """
    kernels = {p: Kernel(p.row_class, p.integer, target.schedule_for(*p)) for p in products}
    object_file, names = compile_scheduled(kernels.values(), gathers, target)
    return Kernels(object_file, {product: names[kernel] for product, kernel in kernels.items()})


def compile_scheduled(
    kernels: Iterable[Kernel], gathers: Iterable[RowClass], target: CpuTarget
) -> tuple[bytes, dict[Kernel, str]]:
    """The same with schedules that need not be the target's: an object file, and the functions in it."""
    lookups = Lookups(
        _named(target, "lookup", target.lookup, LOOKUPS),
        _named(target, "float_lookup", target.float_lookup, FLOAT_LOOKUPS),
    )
    integer = _named(target, "integer", target.integer, INTEGERS)
    functions = [prepare(FLOATS.form, prepare_name(False)), prepare(integer.form, prepare_name(True))]
    functions += [gather(c, target.schedule.decode.lanes, lookups, gather_name(c)) for c in gathers]
    names: dict[Kernel, str] = {}
    for kernel in dict.fromkeys(kernels):
        base = f"skim_matmul_{kernel.row_class.name}{'_integer' if kernel.integer else ''}"
        like_it = sum(other[:2] == kernel[:2] for other in names)
        names[kernel] = f"{base}_{like_it + 1}" if like_it else base
        arithmetic = integer if kernel.integer else FLOATS
        functions.append(matmul(kernel.row_class, kernel.schedule, lookups, arithmetic, names[kernel]))
    module = compile_functions(functions, target)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "kernels.o"
        module.write_to_file(str(path), "o")
        return path.read_bytes(), names


def _named(target: CpuTarget, key: str, name: str, known: dict[str, Any]) -> Any:
    if name not in known:
        raise UserError(f"target {target.name}: {key} = {name!r} is unknown; there are {', '.join(known)}")
    return known[name]


def compile_functions(functions: Sequence[Any], target: CpuTarget) -> Any:
    """TVM's module of some functions: `inspect_source("asm")` shows what they became.

    TVM's own pipelines wrap functions into its calling convention; here they keep the parameters that they have.

    Args:
        functions: PrimFuncs on pointers and integers, with `global_symbol`.
        target: what to compile for.

    Raises:
        UserError: TVM does not accept the target.
    """
    try:
        tvm_target = tvm.target.Target(target.tvm)
    except (ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"target {target.name}: TVM does not accept it: {reason}") from error
    module = tvm.IRModule({f.attrs["global_symbol"]: f for f in functions})
    passes = [
        tirx.transform.BindTarget(tvm_target),
        tirx.transform.StmtSimplify(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.LowerTVMBuiltin(),
        tirx.transform.LowerIntrin(),
    ]
    # Locals share no memory by TVM's doing: it would ask its runtime for it. LLVM keeps them in registers.
    with tvm.transform.PassContext(config={"tirx.disable_storage_rewrite": True}):
        module = tvm.transform.Sequential(passes)(module)
        return tvm.get_global_func("target.build.llvm")(module, tvm_target)
