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
    float32,
    function,
    launch,
    let,
    load4,
    local,
    minimum,
    scalar,
    serial,
    shared,
    store,
    when,
)
from skim_export.bundle.gpu.weights import (
    CODES,
    LANES_OF_WORD,
    Block,
    RowCodes,
    RowLevels,
    Weights,
    block_at,
    code_of,
    steps,
)
from skim_export.packed import LevelKind, RowClass

__all__ = ["decode_kernel"]


def decode_kernel(row_class: RowClass, schedule: Decode) -> Kernel:
    """y[m, row_index[n]] = sum_k level(n, k) x[m, k] for `M` tokens x, `schedule.tokens` of them in a workgroup.

    `prepared` and `x_sum` are what the prepare kernel makes of x. The levels of tables lie in shared memory, scaled.
    Affine levels are multiplied as whole numbers: the result is

        scale * sum_k (code - 2^(b-1)) x[m, k] + offset * sum_k x[m, k]
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
    x = buffer("prepared", "float32")
    x_sum: Buffer = buffer("x_sum", "float32") if affine else None
    y, y_stride = buffer("y", "float32"), scalar("y_stride")
    row_index, row_start = buffer("row_index", "int32"), scalar("row_start")
    M = scalar("M")
    rows_of_workgroup = s.groups * s.rows
    outputs = s.rows * s.tokens  # of a group
    grid = (weights.rows + rows_of_workgroup - 1) // rows_of_workgroup, (M + s.tokens - 1) // s.tokens
    with launch(grid, (s.threads, s.groups)) as ((workgroup_x, workgroup_y), (thread, group)):
        first_row_of_workgroup = let("first_row_of_workgroup", workgroup_x * rows_of_workgroup)
        levels = None
        if not affine:
            levels = _shared_levels(weights, s, first_row_of_workgroup, group * s.threads + thread)
        blocks = let("blocks", weights.blocks)
        first_row = let("first_row", first_row_of_workgroup + group * s.rows)
        first_token = let("first_token", workgroup_y * s.tokens)
        # Beyond the last row and token the last one is computed once more, and not written.
        rows = [RowCodes(weights, weights.existing(first_row + r), blocks) for r in range(s.rows)]
        tokens = [let("token", minimum(first_token + m, M - 1)) for m in range(s.tokens)]
        quads = [let("first_quad", token * (blocks * CODES)) for token in tokens]
        sums = local("sums", outputs)
        for output in range(outputs):
            store(sums, output, float32(0))
        with serial("turn", (blocks + s.threads - 1) // s.threads) as turn:
            index = let("block", turn * s.threads + thread)
            with when(index < blocks):
                block = block_at(index, blocks)
                _multiply_block(
                    sums, row_class, rows, block, x, quads, levels, group * (s.rows << row_class.level_bits)
                )
        partial = shared("partial", s.groups * outputs * s.threads)
        first = let("first_partial", group * (outputs * s.threads))
        for output in range(outputs):
            store(partial, first + output * s.threads + thread, sums[output])
        add_up(partial, first, outputs, s.threads, thread)
        with serial("turn", -(-outputs // s.threads)) as turn:
            output = let("output", turn * s.threads + thread)
            row, token = let("row", first_row + output // s.tokens), let("token", first_token + output % s.tokens)
            with when((output < outputs) & (row < weights.rows) & (token < M)):
                result = partial[first + output * s.threads]
                if affine:
                    affine_levels = RowLevels(weights, row)
                    result = affine_levels.scale * result + affine_levels.offset * x_sum[token]
                store(y, token * y_stride + row_index[row_start + row], result)


def _shared_levels(weights: Weights, s: Decode, first_row: Expr, thread: Expr) -> Buffer:
    """The levels of all rows of the workgroup."""
    bits, threads = weights.row_class.level_bits, s.groups * s.threads
    count = (s.groups * s.rows) << bits
    levels = shared("levels", count)
    with serial("turn", -(-count // threads)) as turn:
        place = let("place", turn * threads + thread)
        with when(place < count):
            row = weights.existing(first_row + (place >> bits))
            store(levels, place, RowLevels(weights, row)[(place & ((1 << bits) - 1)).astype("uint32")])
    barrier()
    return levels


def _multiply_block(
    sums: Buffer,
    row_class: RowClass,
    rows: list[RowCodes],
    block: Block,
    x: Buffer,
    quads: list[Expr],
    levels: Buffer | None,
    first_level: Expr,
) -> None:
    """Add the products of a block to the sums of each row and token.

    Args:
        sums: of all tokens for one row after the other.
        row_class: of the rows.
        rows: of this group of threads.
        block: of them.
        x: the activations.
        quads: where each token begins in x, in quads.
        levels: the levels of the workgroup's rows; None for affine ones.
        first_level: where the levels of this group's rows begin.
    """
    words = [row.words(block) for row in rows]
    for j in range(CODES):
        quad = let("quad", block.quad(j))
        columns = [load4(x, first + quad) for first in quads]
        for r in range(len(rows)):
            for lane in range(LANES_OF_WORD):
                code = code_of(words[r], row_class, j, lane)
                if levels is None:
                    level = let("level", steps(code, row_class.bits))
                else:
                    level = let("level", levels[first_level + (r << row_class.level_bits) + code.astype("int32")])
                for m in range(len(quads)):
                    add(sums, r * len(quads) + m, level * columns[m][lane])
