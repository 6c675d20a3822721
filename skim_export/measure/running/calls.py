"""Functions that TVM can call, here or over RPC, around the kernels' C functions."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from skim_export.bundle.abi import prepare_name
from skim_export.packed import RowClass

__all__ = ["layers_call"]


def layers_call(name: str, row_class: RowClass, integer: bool, kernel: str) -> Any:
    """A PrimFunc that multiplies tokens with one layer after the other, as a decoder does.

    The layers have N rows each; their tensors lie one after the other. For each of them the tokens are prepared anew,
    then `threads` threads multiply a part of the rows each. All layers write to one `y`.

    Args:
        name: of the function.
        row_class: of all rows.
        integer: the arithmetic.
        kernel: the C function that is called.
    """
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name})
        codebook = "uint16" if row_class.codebook == "float16" else "uint8"
        types = {
            "codes": "uint8",  # [layers][N][row bytes]
            "codebook": codebook,  # [layers][N][2^b]
            "row_scale": "float32",  # [layers][N], or [layers][N][2]
            "row_index": "int32",  # [layers][N]
            "column_scale": "float32",  # [K]
            "x": "float32",  # [M][K]
            "prepared": "uint8",  # [M] prepared tokens
            "y": "float32",  # [M][N]
        }
        handles = {name: T.arg(name, T.handle()) for name in types}
        M, K, N, layers, threads = (T.arg(name, T.int32()) for name in ("M", "K", "N", "layers", "threads"))
        data = {name: T.match_buffer(handles[name], (T.int32(),), types[name]).data for name in types}
        prepare = prepare_name(integer)
        tensors = [data[name] for name in ("codes", "codebook", "row_scale", "row_index", "prepared", "y")]
        with T.serial(0, layers) as layer:
            T.evaluate(T.call_extern("void", prepare, data["x"], data["column_scale"], data["prepared"], M, K))
            with T.parallel(0, threads) as thread:
                begin, end = (layer * N + N * t // threads for t in (thread, thread + 1))
                T.evaluate(T.call_extern("void", kernel, *tensors, M, K, N, begin, end))
    return ib.get()
