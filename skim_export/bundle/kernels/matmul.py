"""The product of the packed rows of one class with prepared tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from skim_export.bundle.kernels.arithmetic import FLOATS, ArithmeticKind, Sums
from skim_export.bundle.kernels.codes import CODES
from skim_export.bundle.kernels.lookup import Lookups
from skim_export.bundle.kernels.tir import Buffer, Expr, constant, load, local, parameters, part, store
from skim_export.bundle.kernels.weights import Piece, Row, Weights, each_piece, padded, weight_parameters
from skim_export.bundle.schedule import Prefill, Schedule, Tile
from skim_export.packed import COLUMNS, LANES, RowClass

__all__ = ["matmul"]


class _Product:
    """The parameters of the function, and the three ways to compute it."""

    def __init__(self, row_class: RowClass, lookups: Lookups, arithmetic: ArithmeticKind) -> None:
        given = parameters(
            **weight_parameters(row_class),
            row_index="int32*",
            x="uint8*",
            y="float32*",
            M="int32",
            K="int32",
            y_stride="int32",
            begin="int32",
            end="int32",
        )
        floats = lookups.floats if arithmetic is FLOATS else None
        self._weights = Weights(row_class, lookups.bytes, floats, given)
        self._row_index, self._y = given.row_index, given.y
        self.M, self._K, self._y_stride = given.M, given.K, given.y_stride
        self._begin, self._end = given.begin, given.end
        self._arithmetic = arithmetic.on(given)

    def multiply(self, tile: Tile) -> None:
        """Multiply rows while they are decoded."""
        lanes = min(tile.lanes, self._weights.most_lanes)
        tile = replace(tile, lanes=lanes, vector=min(tile.vector, lanes))
        with T.serial(0, _ceil_div(self._end - self._begin, tile.rows)) as i:
            indices = self._rows_from(self._begin + i * tile.rows, tile.rows)
            rows = [self._weights.row(index, self._K) for index in indices]
            with T.serial(0, _ceil_div(self.M, tile.tokens)) as j:
                tokens = self._tokens_from(j * tile.tokens, tile.tokens)
                pairs = [(row, token) for row in rows for token in tokens]
                totals = local("float32", len(pairs))
                for n in range(len(pairs)):
                    store(totals, n, constant(0.0, "float32"))
                self._dot(tile, rows, tokens, totals)
                places = [self._place(index, token) for index in indices for token in tokens]
                for n, (row, token) in enumerate(pairs):
                    store(self._y, places[n], self._arithmetic.result(row, totals[n], token))

    def _dot(self, tile: Tile, rows: list[Row], tokens: list[Expr], totals: Buffer) -> None:
        """Add the products of rows and tokens to their totals, as many columns at a time as sums have room for."""
        full = T.Bind(padded(self._K) // COLUMNS)
        most = self._arithmetic.most_columns(tile.vector)
        if most is None:
            self._dot_superblocks(tile, rows, tokens, totals, (constant(0, "int32"), full), constant(True, "bool"))
            return
        step = max(1, most // COLUMNS - 1)  # the last superblock may come on top
        steps = T.Bind(T.max(_ceil_div(full, step), 1))
        with T.serial(0, steps) as i:
            blocks = (T.Bind(i * step), T.Bind(T.min((i + 1) * step, full)))
            self._dot_superblocks(tile, rows, tokens, totals, blocks, i == steps - 1)

    def _dot_superblocks(
        self,
        tile: Tile,
        rows: list[Row],
        tokens: list[Expr],
        totals: Buffer,
        blocks: tuple[Expr, Expr],
        last: Expr,
    ) -> None:
        arithmetic, count = self._arithmetic, len(rows) * len(tokens)
        main = arithmetic.sums(count, tile.vector)

        def emit(piece: Piece) -> None:
            lanes = min(tile.vector, piece.lanes)
            sums = main if piece.lanes == tile.lanes else arithmetic.sums(count, lanes)
            if tile.ahead and piece.lanes == LANES:
                for row in rows:
                    self._weights.prefetch(row, piece, tile.ahead)
            codes = [self._weights.codes_of(row, piece) for row in rows]
            for j in range(CODES):
                entries = [T.Bind(row.look_up(c[j])) for row, c in zip(rows, codes, strict=True)]
                for first in range(0, piece.lanes, lanes):
                    levels = [
                        T.Bind(arithmetic.levels(row, part(of_row, first, lanes)))
                        for row, of_row in zip(rows, entries, strict=True)
                    ]
                    for t, token in enumerate(tokens):
                        x = arithmetic.token(token, piece.column + piece.stride * j + first, lanes)
                        for r, level in enumerate(levels):
                            arithmetic.add_product(sums, r * len(tokens) + t, level, x)
            if sums is not main:
                self._add(totals, sums, count)

        each_piece(self._K, self._weights.row_class.bits, tile.lanes, blocks, last, emit)
        self._add(totals, main, count)

    def _add(self, totals: Buffer, sums: Sums, count: int) -> None:
        for n in range(count):
            store(totals, n, totals[n] + self._arithmetic.total(sums, n))

    def prefill(self, tile: Prefill) -> None:
        """Decode rows into a tile and multiply that, some columns at a time; results are summed up in y."""
        K, most = self._K, self._arithmetic.most_columns(tile.vector)
        superblocks = min(tile.columns, most or tile.columns) // COLUMNS
        tile = replace(tile, lanes=min(tile.lanes, self._weights.most_lanes), columns=superblocks * COLUMNS)
        levels = local(self._arithmetic.level, tile.rows * tile.columns)
        full = T.Bind(padded(K) // COLUMNS)
        with T.serial(0, _ceil_div(padded(K), tile.columns)) as k:
            blocks = (T.Bind(k * superblocks), T.Bind(T.min((k + 1) * superblocks, full)))
            columns = T.Bind(T.min(padded(K) - k * tile.columns, tile.columns))
            with T.serial(0, _ceil_div(self._end - self._begin, tile.rows)) as i:
                indices = self._rows_from(self._begin + i * tile.rows, tile.rows)
                rows = [self._weights.row(index, K) for index in indices]
                for r, row in enumerate(rows):
                    self._decode(row, tile, blocks, columns, levels, r * tile.columns)
                with T.serial(0, _ceil_div(self.M, tile.tokens)) as j:
                    tokens = self._tokens_from(j * tile.tokens, tile.tokens)
                    sums = self._multiply_tile(tile, tokens, k * tile.columns, columns, levels)
                    self._add_to_y(rows, indices, tokens, sums, k == 0)

    def _decode(
        self, row: Row, tile: Prefill, blocks: tuple[Expr, Expr], columns: Expr, levels: Buffer, at: int
    ) -> None:
        def emit(piece: Piece) -> None:
            for j, codes in enumerate(self._weights.codes_of(row, piece)):
                column = piece.column - blocks[0] * COLUMNS + piece.stride * j
                store(levels, column + at, self._arithmetic.levels(row, row.look_up(codes)))

        to_the_end = columns % COLUMNS != 0  # only the last superblock can be shorter
        each_piece(self._K, self._weights.row_class.bits, tile.lanes, blocks, to_the_end, emit)

    def _multiply_tile(self, tile: Prefill, tokens: list[Expr], first: Expr, columns: Expr, levels: Buffer) -> Sums:
        sums = self._arithmetic.sums(tile.rows * tile.tokens, tile.vector)
        with T.serial(0, columns // tile.vector) as c:
            xs = [self._arithmetic.token(token, first + c * tile.vector, tile.vector) for token in tokens]
            for r in range(tile.rows):
                level = T.Bind(load(levels, c * tile.vector + r * tile.columns, tile.vector))
                for t, x in enumerate(xs):
                    self._arithmetic.add_product(sums, r * tile.tokens + t, level, x)
        return sums

    def _add_to_y(self, rows: list[Row], indices: list[Expr], tokens: list[Expr], sums: Sums, is_first: Expr) -> None:
        # All are read before any is written: behind the end, the last row and token are there more than once.
        places = [self._place(index, token) for index in indices for token in tokens]
        zero = constant(0.0, "float32")
        before = [T.Bind(tirx.Select(is_first, zero, self._y[place])) for place in places]
        pairs = [(row, token) for row in rows for token in tokens]
        for n, (row, token) in enumerate(pairs):
            value = self._arithmetic.result(row, self._arithmetic.total(sums, n), token, is_first)
            store(self._y, places[n], before[n] + value)

    def _place(self, index: Expr, token: Expr) -> Expr:
        return T.Bind(token * self._y_stride + self._row_index[index])

    def _rows_from(self, first: Expr, count: int) -> list[Expr]:
        """`count` rows, the last one again and again behind the end."""
        return [T.Bind(T.min(first + r, self._end - 1)) for r in range(count)]

    def _tokens_from(self, first: Expr, count: int) -> list[Expr]:
        """`count` tokens, the last one again and again behind the end."""
        return [T.Bind(T.min(first + t, self.M - 1)) for t in range(count)]


def _ceil_div(a: Expr, b: int) -> Expr:
    return (a + (b - 1)) // b


def matmul(row_class: RowClass, schedule: Schedule, lookups: Lookups, arithmetic: ArithmeticKind, name: str) -> Any:
    """A PrimFunc: stored rows begin..end of a class times M prepared tokens.

    Its parameters are those of `skim_matmul_<class>` in skim_kernels.h.
    """
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        product = _Product(row_class, lookups, arithmetic)
        tokens = product.M
        with T.If(tokens == 1):
            with T.Then():
                product.multiply(schedule.decode)
            with T.Else(), T.If(tokens >= schedule.prefill.least_tokens):
                with T.Then():
                    product.prefill(schedule.prefill)
                with T.Else():
                    product.multiply(schedule.batch)
    return ib.get()
