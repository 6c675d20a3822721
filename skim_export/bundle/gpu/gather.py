"""Rows by their number: the embedding."""

from __future__ import annotations

from skim_export.bundle.gpu.kernel import Kernel
from skim_export.bundle.gpu.kernel_list import GridAxis
from skim_export.bundle.gpu.tir import buffer, function, launch, let, minimum, scalar, serial, store, when
from skim_export.bundle.gpu.weights import CODES, LANES_OF_WORD, RowCodes, RowLevels, Weights, block_at, code_of
from skim_export.packed import RowClass

__all__ = ["gather_kernel"]


def gather_kernel(row_class: RowClass, threads: int) -> Kernel:
    """y[m, k] = W[ids[m], k], column scale included, for those of `M` ids whose row is of this class.

    The others are left as they are: a launch for each class fills y. The ids must be rows that exist.
    """
    name = f"skim_gather_{row_class.name}"
    body = function(name, lambda: _body(row_class, threads))
    return Kernel(name, "gather", row_class, body, (GridAxis("M", 1),), (threads,))


def _body(row_class: RowClass, threads: int) -> None:
    weights = Weights(row_class)
    ids, stored_row, row_start = buffer("ids", "int32"), buffer("stored_row", "int32"), scalar("row_start")
    column_scale, y, M = buffer("column_scale", "float32"), buffer("y", "float32"), scalar("M")
    with launch((M,), (threads,)) as ((token,), (thread,)):
        # WGSL: TVM lets one workgroup too many run, where it folds a long grid.
        row = let("row", stored_row[ids[minimum(token, M - 1)]] - row_start)
        blocks = let("blocks", weights.blocks)
        tasks = let("tasks", blocks * LANES_OF_WORD)
        with when((token < M) & (row >= 0) & (row < weights.rows)):
            codes, levels = RowCodes(weights, row, blocks), RowLevels(weights, row)
            with serial("turn", (tasks + threads - 1) // threads) as turn:
                task = let("task", turn * threads + thread)
                with when(task < tasks):
                    lane = let("lane", task % LANES_OF_WORD)
                    block = block_at(task // LANES_OF_WORD, blocks)
                    words = [let("from_lane", word >> (lane * 8).astype("uint32")) for word in codes.words(block)]
                    for j in range(CODES):
                        column = let("column", block.quad(j) * 4 + lane)
                        with when(column < weights.K):
                            level = levels[let("code", code_of(words, row_class, j))]
                            store(y, token * weights.K + column, level * column_scale[column])
