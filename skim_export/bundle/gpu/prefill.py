"""Many tokens: tiles of decoded rows and of tokens are multiplied in shared memory."""

from __future__ import annotations

from skim_export.bundle.gpu.kernel import Kernel
from skim_export.bundle.gpu.kernel_list import GridAxis
from skim_export.bundle.gpu.schedule import Prefill
from skim_export.bundle.gpu.tir import (
    Buffer,
    Expr,
    add,
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
from skim_export.bundle.gpu.weights import CODES, LANES_OF_WORD, RowCodes, RowLevels, Weights, block_at, code_of
from skim_export.packed import RowClass

__all__ = ["prefill_kernel"]

# Quads from one row (or token) of a tile to the next, beyond its columns: threads that load a quad each, of different
# tokens, meet different banks of shared memory.
PADDING = 1


def prefill_kernel(row_class: RowClass, schedule: Prefill) -> Kernel:
    """The same product as `decode_kernel`, tile by tile. Affine levels need no x_sum here."""
    name = f"skim_prefill_{row_class.name}"
    return Kernel(
        name,
        "prefill",
        row_class,
        function(name, lambda: _body(row_class, schedule)),
        (GridAxis("rows", schedule.rows), GridAxis("M", schedule.tokens)),
        (schedule.token_threads, schedule.row_threads),
    )


def _stride(s: Prefill) -> int:
    """Quads from one row (or token) of a tile to the next."""
    return s.blocks * CODES + PADDING


def _body(row_class: RowClass, s: Prefill) -> None:
    weights = Weights(row_class)
    x, y, y_stride = buffer("prepared", "float32"), buffer("y", "float32"), scalar("y_stride")
    row_index, row_start = buffer("row_index", "int32"), scalar("row_start")
    M = scalar("M")
    own_rows, own_tokens = s.rows // s.row_threads, s.tokens // s.token_threads
    stride = _stride(s)
    grid = (weights.rows + s.rows - 1) // s.rows, (M + s.tokens - 1) // s.tokens
    with launch(grid, (s.token_threads, s.row_threads)) as ((workgroup_x, workgroup_y), (thread_x, thread_y)):
        index = let("index_of_thread", thread_y * s.token_threads + thread_x)
        blocks = let("blocks", weights.blocks)
        first_row, first_token = let("first_row", workgroup_x * s.rows), let("first_token", workgroup_y * s.tokens)
        weight_tile = shared("weight_tile", s.rows * stride * 4)
        x_tile = shared("x_tile", s.tokens * stride * 4)
        sums = local("sums", own_rows * own_tokens)
        for output in range(own_rows * own_tokens):
            store(sums, output, float32(0))
        with serial("turn", (blocks + s.blocks - 1) // s.blocks) as turn:
            first_block = let("first_block", turn * s.blocks)
            barrier()
            _fill_weights(weight_tile, weights, s, first_row, first_block, blocks, index)
            _fill_x(x_tile, x, M, s, first_token, first_block, blocks, index)
            barrier()
            with serial("quad", s.blocks * CODES) as quad:
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


def _fill_weights(
    tile: Buffer, weights: Weights, s: Prefill, first_row: Expr, first_block: Expr, blocks: Expr, index: Expr
) -> None:
    """Decode a tile. Each task is one lane of a block: 8 codes.

    The columns of a block lie in the tile in the order of codes and lanes, as `_fill_x` places them.
    """
    threads = s.row_threads * s.token_threads
    tasks = s.rows * s.blocks * LANES_OF_WORD
    with serial("task_turn", -(-tasks // threads)) as turn:
        task = let("task", turn * threads + index)
        with when(task < tasks):
            lane = let("lane", task % LANES_OF_WORD)
            block_of_tile = let("block_of_tile", task // LANES_OF_WORD % s.blocks)
            row_of_tile = let("row_of_tile", task // (LANES_OF_WORD * s.blocks))
            place = let("place", (row_of_tile * _stride(s) + block_of_tile * CODES) * 4 + lane)
            block = let("block", first_block + block_of_tile)
            with when(block >= blocks):
                for j in range(CODES):
                    store(tile, place + j * LANES_OF_WORD, float32(0))
            with when(block < blocks):
                row = weights.existing(first_row + row_of_tile)
                words = RowCodes(weights, row, blocks).words(block_at(block, blocks))
                words = [let("from_lane", word >> (lane * 8).astype("uint32")) for word in words]
                levels = RowLevels(weights, row)
                for j in range(CODES):
                    store(tile, place + j * LANES_OF_WORD, levels[let("code", code_of(words, weights.row_class, j))])


def _fill_x(
    tile: Buffer, x: Buffer, M: Expr, s: Prefill, first_token: Expr, first_block: Expr, blocks: Expr, index: Expr
) -> None:
    """Copy a tile of activations. Each task is the 4 columns of one code of a block."""
    threads = s.row_threads * s.token_threads
    tasks = s.tokens * s.blocks * CODES
    with serial("task_turn", -(-tasks // threads)) as turn:
        task = let("task", turn * threads + index)
        with when(task < tasks):
            j, block_of_tile = let("j", task % CODES), let("block_of_tile", task // CODES % s.blocks)
            token_of_tile = let("token_of_tile", task // (CODES * s.blocks))
            place = let("place", (token_of_tile * _stride(s) + block_of_tile * CODES + j) * 4)
            block = let("block", first_block + block_of_tile)
            with when(block >= blocks):
                for i in range(LANES_OF_WORD):
                    store(tile, place + i, float32(0))
            with when(block < blocks):
                token = let("token", minimum(first_token + token_of_tile, M - 1))
                columns = load4(x, token * (blocks * CODES) + block_at(block, blocks).quad(j))
                for i in range(LANES_OF_WORD):
                    store(tile, place + i, columns[i])
