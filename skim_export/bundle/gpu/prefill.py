"""Many tokens: tiles of decoded rows and of tokens are multiplied in shared memory."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from skim_export.bundle.gpu.kernel import Kernel
from skim_export.bundle.gpu.kernel_list import GridAxis
from skim_export.bundle.gpu.schedule import Prefill
from skim_export.bundle.gpu.tir import (
    Buffer,
    Expr,
    add,
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
from skim_export.bundle.gpu.weights import CODES, LANES_OF_WORD, Weights, block_at, extract
from skim_export.bundle.row_class import RowClass

__all__ = ["prefill_kernel"]

# Floats between two rows (or tokens) of a tile beyond its columns: 8 threads that load 4 floats each, of 8 tokens, meet
# different banks of shared memory.
PADDING = 4


def prefill_kernel(row_class: RowClass, schedule: Prefill) -> Kernel:
    """The same product as `decode_kernel`, in tiles; x_sum is not read."""
    name = f"skim_prefill_{row_class.name}"
    return Kernel(
        name,
        "prefill",
        row_class,
        function(name, lambda: _body(row_class, schedule)),
        (GridAxis("rows", schedule.rows), GridAxis("M", schedule.tokens)),
        (schedule.token_threads, schedule.row_threads),
    )


def _body(row_class: RowClass, s: Prefill) -> None:
    weights = Weights(row_class)
    x, y, y_stride = buffer("prepared", "float32"), buffer("y", "float32"), scalar("y_stride")
    row_index, row_start = buffer("row_index", "int32"), scalar("row_start")
    M = scalar("M")
    own_rows, own_tokens = s.rows // s.row_threads, s.tokens // s.token_threads
    quads, stride = s.blocks * 8, (s.blocks * 32 + PADDING) // 4
    grid = (weights.rows + s.rows - 1) // s.rows, (M + s.tokens - 1) // s.tokens
    with launch(grid, (s.token_threads, s.row_threads)) as ((row_tile, token_tile), (thread_x, thread_y)):
        thread = let("thread_of_workgroup", thread_y * s.token_threads + thread_x)
        first_row, first_token = let("first_row", row_tile * s.rows), let("first_token", token_tile * s.tokens)
        weight_tile, x_tile = shared("weight_tile", s.rows * stride * 4), shared("x_tile", s.tokens * stride * 4)
        sums = local("sums", own_rows * own_tokens)
        for output in range(own_rows * own_tokens):
            store(sums, output, T.float32(0))
        with serial("turn", (weights.blocks + s.blocks - 1) // s.blocks) as turn:
            first_block = let("first_block", turn * s.blocks)
            barrier()
            _fill_weights(weight_tile, weights, s, first_row, first_block, thread)
            _fill_x(x_tile, x, weights.blocks, M, s, first_token, first_block, thread)
            barrier()
            with serial("quad", quads) as quad:
                w = [load4(weight_tile, (thread_y + s.row_threads * r) * stride + quad) for r in range(own_rows)]
                a = [load4(x_tile, (thread_x + s.token_threads * m) * stride + quad) for m in range(own_tokens)]
                for i in range(4):
                    for r in range(own_rows):
                        for m in range(own_tokens):
                            add(sums, r * own_tokens + m, w[r][i] * a[m][i])
        for r in range(own_rows):
            row = let("row", first_row + thread_y + s.row_threads * r)
            for m in range(own_tokens):
                token = let("token", first_token + thread_x + s.token_threads * m)
                with when((row < weights.rows) & (token < M)):
                    store(y, token * y_stride + row_index[row_start + row], sums[r * own_tokens + m])


def _fill_weights(tile: Buffer, weights: Weights, s: Prefill, first_row: Expr, first_block: Expr, thread: Expr) -> None:
    """Decode a tile. A thread takes one lane of a block: 8 codes.

    The columns of a block lie in the tile in the order of codes and lanes, which is that of `_fill_x`.
    """
    bits, threads = weights.row_class.bits, s.row_threads * s.token_threads
    stride = s.blocks * 32 + PADDING
    tasks = s.rows * s.blocks * LANES_OF_WORD
    with serial("task_turn", -(-tasks // threads)) as turn:
        task = let("task", turn * threads + thread)
        with when(task < tasks):
            lane, block_of_tile = task % LANES_OF_WORD, task // LANES_OF_WORD % s.blocks
            row_of_tile = task // (LANES_OF_WORD * s.blocks)
            place = let("place", row_of_tile * stride + block_of_tile * 32 + lane)
            index = let("block", first_block + block_of_tile)
            with when(index >= weights.blocks):
                for j in range(CODES):
                    store(tile, place + j * LANES_OF_WORD, T.float32(0))
            with when(index < weights.blocks):
                row = weights.row(let("row_to_decode", T.min(first_row + row_of_tile, weights.rows - 1)))
                words = row.words(block_at(index, weights.blocks, bits))
                own = [let("own", word >> (lane * 8).astype("uint32")) for word in words]
                for j in range(CODES):
                    store(tile, place + j * LANES_OF_WORD, row.level(let("code", extract(own, bits, j, 0))))


def _fill_x(
    tile: Buffer, x: Buffer, blocks: Expr, M: Expr, s: Prefill, first_token: Expr, first_block: Expr, thread: Expr
) -> None:
    """Copy a tile of activations. A thread takes the 4 columns of one code of a block."""
    threads, stride = s.row_threads * s.token_threads, s.blocks * 32 + PADDING
    tasks = s.tokens * s.blocks * CODES
    with serial("task_turn", -(-tasks // threads)) as turn:
        task = let("task", turn * threads + thread)
        with when(task < tasks):
            j, block_of_tile = task % CODES, task // CODES % s.blocks
            token_of_tile = task // (CODES * s.blocks)
            place = let("place", token_of_tile * stride + block_of_tile * 32 + j * LANES_OF_WORD)
            index = let("block", first_block + block_of_tile)
            with when(index >= blocks):
                for i in range(LANES_OF_WORD):
                    store(tile, place + i, T.float32(0))
            with when(index < blocks):
                block = block_at(index, blocks, 1)
                token = let("token_to_copy", T.min(first_token + token_of_tile, M - 1))
                quad = load4(x, token * (blocks * 8) + block.quad + block.quad_step * j)
                for i in range(LANES_OF_WORD):
                    store(tile, place + i, quad[i])
