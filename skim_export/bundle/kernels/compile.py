"""From PrimFuncs to an object file with a plain C ABI, which needs nothing of TVM."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import tirx

from skim_export.bundle.kernels.gather import gather
from skim_export.bundle.kernels.lookup import LOOKUPS, Lookup
from skim_export.bundle.kernels.matmul import matmul
from skim_export.bundle.kernels.prepare import prepare
from skim_export.bundle.row_class import RowClass
from skim_export.bundle.schedule import Schedule
from skim_export.bundle.target import CpuTarget
from skim_runtime.errors import UserError

__all__ = ["compile_functions", "compile_kernels", "lookup_of"]

MEMORY = "memory"  # the lookup of a target without table instructions


def lookup_of(target: CpuTarget) -> Lookup | None:
    """The table lookup of a target; None if it is in memory.

    Raises:
        UserError: the target's file names one that there is not.
    """
    if target.lookup != MEMORY and target.lookup not in LOOKUPS:
        names = ", ".join([*LOOKUPS, MEMORY])
        raise UserError(f"target {target.name}: lookup = {target.lookup!r} is unknown; there are {names}")
    return LOOKUPS.get(target.lookup)


def compile_kernels(
    products: Mapping[str, tuple[RowClass, Schedule]], gathers: Iterable[RowClass], target: CpuTarget
) -> bytes:
    """The object file with the kernels of a bundle.

    Args:
        products: names of functions, and what they are for.
        gathers: the classes whose rows are also read one by one, by `skim_gather_<class>`.
        target: what to compile for.

    Raises:
        UserError: TVM does not accept the target.
    """
    lookup = lookup_of(target)
    functions = [prepare("skim_prepare")]
    functions += [matmul(row_class, schedule, lookup, name) for name, (row_class, schedule) in products.items()]
    functions += [
        gather(row_class, target.schedule.decode.lanes, lookup, f"skim_gather_{row_class.name}")
        for row_class in gathers
    ]
    module = compile_functions(functions, target)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "kernels.o"
        module.write_to_file(str(path), "o")
        return path.read_bytes()


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
        raise UserError(
            f"target {target.name}: TVM does not accept it: {str(error).strip().splitlines()[-1]}"
        ) from error
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
