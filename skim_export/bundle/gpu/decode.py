"""Few tokens: every row is read once and multiplied while it is decoded."""

from __future__ import annotations

from skim_export.bundle.gpu.kernel import Kernel
from skim_export.bundle.gpu.kernel_list import GridAxis
from skim_export.bundle.gpu.schedule import Decode
from skim_export.bundle.gpu.tir import (
    Buffer,
    Expr,
    add,
    add_up,
    barrier,
    buffer,
    function,
    launch,
    let,
    load4,
    local,
    scalar,
    serial,
    shared,
    store,
    when,
)
from skim_export.bundle.gpu.weights import CODES, Row, Weights, block_at, extract, step
from skim_export.bundle.row_class import RowClass
from skim_export.packed import LevelKind

from tvm.tirx.script import builder as T  # isort: skip

__all__ = ["decode_kernel"]


def decode_kernel(row_class: RowClass, schedule: Decode) -> Kernel:
    """y[m, row_index[n]] = sum_k level(n, k) x[m, k] for `M` tokens, `schedule.tokens` to a workgroup.

    x holds 32 ceil(K / 32) floats a token, as the prepare kernel leaves them. Levels of tables lie in shared memory,
    scaled. Affine levels are multiplied as whole numbers: with x_sum[m] = sum_k x[m, k] the result is
    scale * sum_k (code - 2^(b-1)) x[m, k] + offset * x_sum[m].
    """
    name = f"skim_decode{schedule.tokens}_{row_class.name}"
    return Kernel(
        name,
        "decode",
        row_class,
        function(name, lambda: _body(row_class, schedule)),
        (GridAxis("rows", schedule.groups * schedule.rows), GridAxis("M", schedule.tokens)),
        (schedule.threads, schedule.groups),
    )


def _body(row_class: RowClass, s: Decode) -> None:
    affine = row_class.kind == LevelKind.AFFINE
    weights = Weights(row_class)
    x, x_sum = buffer("prepared", "float32"), buffer("x_sum", "float32") if affine else None
    y, y_stride = buffer("y", "float32"), scalar("y_stride")
    row_index, row_start = buffer("row_index", "int32"), scalar("row_start")
    M = scalar("M")
    rows_of_workgroup = s.groups * s.rows
    outputs = s.rows * s.tokens  # of a group
    grid = (weights.rows + rows_of_workgroup - 1) // rows_of_workgroup, (M + s.tokens - 1) // s.tokens
    with launch(grid, (s.threads, s.groups)) as ((group_of_rows, group_of_tokens), (thread, group)):
        levels = None if affine else _shared_levels(weights, s, group_of_rows, group * s.threads + thread)
        blocks = let("blocks", weights.blocks)
        first_row = let("first_row", group_of_rows * rows_of_workgroup + group * s.rows)
        first_token = let("first_token", group_of_tokens * s.tokens)
        # Beyond the last row and token the last one is computed again, and not written.
        rows = [weights.row(let("row", T.min(first_row + r, weights.rows - 1))) for r in range(s.rows)]
        tokens = [let("token_quad", T.min(first_token + m, M - 1) * (blocks * 8)) for m in range(s.tokens)]
        sums = local("sums", outputs)
        for output in range(outputs):
            store(sums, output, T.float32(0))
        with serial("turn", (blocks + s.threads - 1) // s.threads) as turn:
            index = let("block", turn * s.threads + thread)
            with when(index < blocks):
                _multiply_block(sums, row_class.bits, rows, tokens, x, levels, group, index, blocks)
        partial = shared("partial", s.groups * outputs * s.threads)
        first = let("first", group * (outputs * s.threads))
        for output in range(outputs):
            store(partial, first + output * s.threads + thread, sums[output])
        add_up(partial, first, outputs, s.threads, thread)
        with serial("turn", -(-outputs // s.threads)) as turn:
            output = let("output", turn * s.threads + thread)
            r, m = first_row + output // s.tokens, first_token + output % s.tokens
            with when((output < outputs) & (r < weights.rows) & (m < M)):
                total = partial[first + output * s.threads]
                if affine:
                    row = weights.row(r)
                    total = row.scale * total + row.offset * x_sum[m]
                store(y, m * y_stride + row_index[row_start + r], total)


def _shared_levels(weights: Weights, s: Decode, group_of_rows: Expr, thread: Expr) -> Buffer:
    """The scaled codebooks of all rows of the workgroup."""
    bits, rows, threads = weights.row_class.bits, s.groups * s.rows, s.groups * s.threads
    levels = shared("levels", rows << bits)
    with serial("turn", -(-(rows << bits) // threads)) as turn:
        place = let("place", turn * threads + thread)
        with when(place < rows << bits):
            row = weights.row(let("row", T.min(group_of_rows * rows + (place >> bits), weights.rows - 1)))
            store(levels, place, row.level((place & ((1 << bits) - 1)).astype("uint32")))
    barrier()
    return levels


def _multiply_block(
    sums: Buffer,
    bits: int,
    rows: list[Row],
    tokens: list[Expr],
    x: Buffer,
    levels: Buffer | None,
    group: Expr,
    index: Expr,
    blocks: Expr,
) -> None:
    block = block_at(index, blocks, bits)
    words = [row.words(block) for row in rows]
    for j in range(CODES):
        quad = let("quad_of_code", block.quad + block.quad_step * j)
        columns = [load4(x, token + quad) for token in tokens]
        for r in range(len(rows)):
            for lane in range(4):
                code = extract(words[r], bits, j, lane)
                if levels is None:
                    level = let("level", step(code, bits))
                else:
                    first = (group * len(rows) + r) << bits
                    level = let("level", levels[first + code.astype("int32")])
                for m in range(len(tokens)):
                    add(sums, r * len(tokens) + m, level * columns[m][lane])
