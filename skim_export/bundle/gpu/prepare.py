"""Activations as the products read them."""

from __future__ import annotations

from skim_export.bundle.gpu.kernel import Kernel
from skim_export.bundle.gpu.kernel_list import GridAxis
from skim_export.bundle.gpu.tir import (
    add,
    add_up,
    buffer,
    float32,
    function,
    if_then_else,
    launch,
    let,
    scalar,
    serial,
    shared,
    store,
    when,
)

__all__ = ["prepare_kernel"]


def prepare_kernel(threads: int) -> Kernel:
    """prepared[m, k] = x[m, k] * column_scale[k], filled up with zeros to 32 ceil(K / 32) columns, and their sums."""
    name = "skim_prepare"
    return Kernel(name, "prepare", None, function(name, lambda: _body(threads)), (GridAxis("M", 1),), (threads,))


def _body(threads: int) -> None:
    x, column_scale = buffer("x", "float32"), buffer("column_scale", "float32")
    prepared, x_sum = buffer("prepared", "float32"), buffer("x_sum", "float32")
    K, M = scalar("K"), scalar("M")
    with launch((M,), (threads,)) as ((token,), (thread,)):
        columns = let("columns", (K + 31) // 32 * 32)
        sums = shared("sums", threads)
        store(sums, thread, float32(0))
        with serial("turn", (columns + threads - 1) // threads) as turn:
            column = let("column", turn * threads + thread)
            # WGSL: TVM lets one workgroup too many run, where it folds a long grid.
            with when((column < columns) & (token < M)):
                scaled = x[token * K + column] * column_scale[column]
                value = let("value", if_then_else(column < K, scaled, float32(0)))
                store(prepared, token * columns + column, value)
                add(sums, thread, value)
        add_up(sums, 0, 1, threads, thread)
        with when((thread == 0) & (token < M)):
            store(x_sum, token, sums[0])
