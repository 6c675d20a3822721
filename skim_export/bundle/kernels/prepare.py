"""Tokens in the form in which the products read them."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from skim_export.bundle.kernels.matmul import token_floats
from skim_export.bundle.kernels.tir import constant, load, local, parameters, splat, store, sum_of_lanes
from skim_export.bundle.kernels.weights import padded

__all__ = ["prepare"]

LANES = 16


def prepare(name: str) -> Any:
    """A PrimFunc: tokens times the column scale, padded, and followed by their sum.

    Its parameters are those of `skim_prepare` in skim_kernels.h.
    """
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        given = parameters(x="float32*", column_scale="float32*", prepared="float32*", M="int32", K="int32")
        K, zero = given.K, constant(0.0, "float32")
        stride = T.Bind(token_floats(K))
        with T.serial(0, given.M) as m:
            sums = local(f"float32x{LANES}")
            store(sums, 0, splat(0.0, "float32", LANES))
            whole = T.Bind(K // LANES)
            with T.serial(0, whole) as i:
                at = i * LANES
                values = T.Bind(load(given.x, m * K + at, LANES) * load(given.column_scale, at, LANES))
                store(given.prepared, m * stride + at, values)
                store(sums, 0, sums[0] + values)
            total = local("float32")
            store(total, 0, sum_of_lanes(sums[0]))
            with T.serial(0, padded(K) - whole * LANES) as i:
                at = T.Bind(whole * LANES + i)
                # Nothing is read behind the token's end.
                inside = T.Bind(T.min(at, K - 1))
                value = T.Bind(tirx.Select(at < K, given.x[m * K + inside] * given.column_scale[inside], zero))
                store(given.prepared, m * stride + at, value)
                store(total, 0, total[0] + value)
            store(given.prepared, m * stride + padded(K), total[0])
    return ib.get()
