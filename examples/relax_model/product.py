"""Products with packed weights as Relax expressions.

Here is how the rows of a packed linear lie in its tensors, and how they are distributed over threads. The arithmetic is
in the kernels, which are called by name and linked in later.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from tvm import ir, relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from relax_model.operands import PackedOperand
from skim_export.bundle.abi import Kernels, gather_name, prepare_name, prepared_bytes
from skim_export.bundle.kernels.weights import padded
from skim_export.packed import RowClass

__all__ = ["lut_gather", "lut_product"]

ZERO = tirx.const(0, "int64")


def lut_product(builder: relax.BlockBuilder, kernels: Kernels, packed: PackedOperand, x: relax.Expr) -> relax.Expr:
    """`x` `[1, M, K]` times the transpose of a packed linear, plus its bias: float32 `[1, M, N]`."""
    function = builder.add_func(_product(packed, kernels), "lut_product")
    tensors = [packed.codes, packed.codebook, packed.row_scale, packed.row_index, packed.column_scale]
    out = relax.TensorType([1, x.ty.shape[1], packed.linear.out_features], "float32")
    y = builder.emit(relax.call_tir(function, [x, *tensors, *packed.row_counts], out))
    return y if packed.bias is None else builder.emit(relax.op.add(y, packed.bias))


def lut_gather(builder: relax.BlockBuilder, packed: PackedOperand, ids: relax.Expr) -> relax.Expr:
    """The rows `ids` `[1, M]` of a packed linear: float32 `[1, M, K]`."""
    function = builder.add_func(_gather(packed), "lut_gather")
    tensors = [packed.codes, packed.codebook, packed.row_scale, packed.stored_row, packed.column_scale]
    out = relax.TensorType([1, ids.ty.shape[1], packed.linear.in_features], "float32")
    return builder.emit(relax.call_tir(function, [ids, *tensors, *packed.row_counts], out))


def _product(packed: PackedOperand, kernels: Kernels) -> tirx.PrimFunc:
    """Sizes, and rows of each class, are arguments: linears with the same kernels share a function."""
    classes = [section.row_class for section in packed.linear.sections()]
    matmuls = [kernels.matmuls[product] for product in packed.products]
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_name("lut_product")
        T.func_attr({"tirx.noalias": True})
        M, K, N = (tirx.Var(name, "int64") for name in "MKN")
        x = T.arg("x", T.buffer((1, M, K), "float32"))
        tensors = _weight_arguments(packed)
        row_index = T.arg("row_index", T.buffer((N,), "int32"))
        column_scale = T.arg("column_scale", T.buffer((K,), "float32"))
        counts = [T.arg(f"rows_{row_class.name}", T.int64()) for row_class in classes]
        y = T.arg("y", T.buffer((1, M, N), "float32"))
        prepared = T.alloc_buffer((M * prepared_bytes(K),), "uint8")
        _call(prepare_name(packed.integer), x.data, column_scale.data, prepared.data, M, K)
        # A task of a thread: so many rows that it takes about the same bytes in every class.
        task_rows = [4 * (16 // row_class.bits) for row_class in classes]
        tasks = [tirx.ceildiv(count, rows) for count, rows in zip(counts, task_rows, strict=True)]
        first_task = [ZERO, *accumulate(tasks)]
        first_row = [ZERO, *accumulate(counts)]
        with T.parallel(0, first_task[-1]) as task:
            for i, pointers in enumerate(_first_of_class(classes, counts, tensors, K)):
                with T.If(tirx.all(task >= first_task[i], task < first_task[i + 1])), T.Then():
                    begin = (task - first_task[i]) * task_rows[i]
                    end = tirx.min(begin + task_rows[i], counts[i])
                    places = T.address_of(row_index[first_row[i]])
                    _call(matmuls[i], *pointers, places, prepared.data, y.data, M, K, N, begin, end)
    return builder.get()


def _gather(packed: PackedOperand) -> tirx.PrimFunc:
    classes = [section.row_class for section in packed.linear.sections()]
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_name("lut_gather")
        T.func_attr({"tirx.noalias": True})
        M, K, N = (tirx.Var(name, "int64") for name in "MKN")
        ids = T.arg("ids", T.buffer((1, M), "int64"))
        tensors = _weight_arguments(packed)
        stored_row = T.arg("stored_row", T.buffer((N,), "int32"))
        column_scale = T.arg("column_scale", T.buffer((K,), "float32"))
        counts = [T.arg(f"rows_{row_class.name}", T.int64()) for row_class in classes]
        y = T.arg("y", T.buffer((1, M, K), "float32"))
        first_row = [ZERO, *accumulate(counts)]
        row_with_padding = T.alloc_buffer((padded(K),), "float32")
        with T.serial(0, M) as m:
            row = T.Bind(T.Cast("int64", stored_row[ids[0, m]]))
            for i, pointers in enumerate(_first_of_class(classes, counts, tensors, K)):
                with T.If(tirx.all(row >= first_row[i], row < first_row[i + 1])), T.Then():
                    _call(gather_name(classes[i]), *pointers, row_with_padding.data, K, row - first_row[i])
            with T.serial(0, K) as k:
                T.buffer_store(y, row_with_padding[k] * column_scale[k], [0, m, k])
    return builder.get()


def _weight_arguments(packed: PackedOperand) -> list[tirx.Buffer]:
    """The arguments codes, codebook and row_scale."""
    types = {"codes": "uint8", "codebook": packed.codebook.ty.dtype, "row_scale": "float32"}
    return [T.arg(n, T.buffer((tirx.Var(f"{n}_size", "int64"),), dtype)) for n, dtype in types.items()]


def _first_of_class(
    classes: Sequence[RowClass], counts: Sequence[Any], tensors: Sequence[tirx.Buffer], columns: Any
) -> list[list[Any]]:
    """Addresses of codes, codebook and scale of each class's first row, if it has `counts` rows."""
    sizes = [
        [count * (padded(columns) // 8 * row_class.bits), count * row_class.entries, count * row_class.scales]
        for row_class, count in zip(classes, counts, strict=True)
    ]
    starts = [[ZERO, *accumulate(of_tensor)][:-1] for of_tensor in zip(*sizes, strict=True)]
    return [
        [T.address_of(tensor[start]) for tensor, start in zip(tensors, of_class, strict=True)]
        for of_class in zip(*starts, strict=True)
    ]


def _call(kernel: str, *arguments: Any) -> None:
    """Call a kernel: its numbers are int32."""
    converted = [T.Cast("int32", a) if a.ty == ir.PrimType("int64") else a for a in arguments]
    T.evaluate(T.call_extern("void", kernel, *converted))
