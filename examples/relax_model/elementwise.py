"""Norms and the gate of a feed-forward network as TIR functions."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from relax_model.vectors import dot, exponential
from skim_export.bundle.kernels.tir import Expr, local, vector_type

__all__ = ["rms_norm_function", "silu_product_function", "skip_rms_norm_function"]


def rms_norm_function(columns: int, epsilon: float) -> tirx.PrimFunc:
    """RMS norm y = x / rms(x) * weight; arguments: x `[1, M, K]`, weight `[K]`, y."""
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_name("rms_norm")
        T.func_attr({"tirx.noalias": True})
        tokens = tirx.Var("M", "int64")
        shape = (1, tokens, columns)
        x = T.arg("x", T.buffer(shape, "float32"))
        weight = T.arg("weight", T.buffer((columns,), "float32"))
        y = T.arg("y", T.buffer(shape, "float32"))
        with T.serial(0, tokens) as m:
            _normalize(x, weight, y, m, columns, epsilon)
    return builder.get()


def skip_rms_norm_function(columns: int, epsilon: float) -> tirx.PrimFunc:
    """RMS norm of total = x + skip.

    Arguments: x and skip `[1, M, K]`, weight `[K]`, y, total.
    """
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_name("skip_rms_norm")
        T.func_attr({"tirx.noalias": True})
        tokens = tirx.Var("M", "int64")
        shape = (1, tokens, columns)
        x = T.arg("x", T.buffer(shape, "float32"))
        skip = T.arg("skip", T.buffer(shape, "float32"))
        weight = T.arg("weight", T.buffer((columns,), "float32"))
        y = T.arg("y", T.buffer(shape, "float32"))
        total = T.arg("total", T.buffer(shape, "float32"))
        with T.serial(0, tokens) as m:
            with T.serial(0, columns) as k:
                T.buffer_store(total, x[0, m, k] + skip[0, m, k], [0, m, k])
            _normalize(total, weight, y, m, columns, epsilon)
    return builder.get()


def silu_product_function() -> tirx.PrimFunc:
    """Gate of a feed-forward network, y = silu(gate) * up; arguments: gate, up and y `[1, M, N]`."""
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_name("silu_product")
        T.func_attr({"tirx.noalias": True})
        shape = (1, tirx.Var("M", "int64"), tirx.Var("N", "int64"))
        gate = T.arg("gate", T.buffer(shape, "float32"))
        up = T.arg("up", T.buffer(shape, "float32"))
        y = T.arg("y", T.buffer(shape, "float32"))
        with T.serial(0, shape[1]) as m, T.serial(0, shape[2]) as n:
            x = gate[0, m, n]
            T.buffer_store(y, x / (T.float32(1) + exponential(-x)) * up[0, m, n], [0, m, n])
    return builder.get()


def _normalize(x: tirx.Buffer, weight: tirx.Buffer, y: tirx.Buffer, m: tirx.Var, columns: int, epsilon: float) -> None:
    def part(k: Expr, count: int) -> Expr:
        return x.vload([0, m, k], vector_type("float32", count))

    factor = local("float32")
    squares = dot(part, part, columns)
    T.buffer_store(factor, T.rsqrt(squares / T.float32(columns) + T.float32(epsilon)), [0])
    with T.serial(0, columns) as k:
        T.buffer_store(y, x[0, m, k] * factor[0] * weight[k], [0, m, k])
