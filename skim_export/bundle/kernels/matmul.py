"""The product of the packed rows of one class with prepared tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from skim_export.bundle.kernels.codes import CODES
from skim_export.bundle.kernels.lookup import Lookup
from skim_export.bundle.kernels.tir import (
    Buffer,
    Expr,
    constant,
    load,
    local,
    multiply_add,
    parameters,
    part,
    splat,
    store,
    sum_of_lanes,
    vector_type,
)
from skim_export.bundle.kernels.weights import Piece, Row, Weights, each_piece, padded, weight_parameters
from skim_export.bundle.row_class import RowClass
from skim_export.bundle.schedule import Prefill, Schedule, Tile
from skim_export.packed import COLUMNS

__all__ = ["matmul", "token_floats"]

ALIGNMENT = 16  # floats


def token_floats(K: Any) -> Any:
    """Floats of a prepared token: its padded columns and their sum, up to a multiple of 64 bytes."""
    return (padded(K) + 1 + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


class _Sums:
    """Partial sums of rows x tokens: vectors of some lanes."""

    def __init__(self, rows: int, tokens: int, lanes: int) -> None:
        self._buffer = local(vector_type("float32", lanes), rows * tokens)
        self._tokens, self._lanes = tokens, lanes
        for i in range(rows * tokens):
            store(self._buffer, i, splat(0.0, "float32", lanes))

    def add_product(self, row: int, token: int, a: Expr, b: Expr) -> None:
        i = row * self._tokens + token
        store(self._buffer, i, multiply_add(a, b, self._buffer[i]))

    def total(self, row: int, token: int) -> Expr:
        return sum_of_lanes(self._buffer[row * self._tokens + token])


class _Product:
    """The parameters of the function, and the three ways to compute it."""

    def __init__(self, row_class: RowClass, lookup: Lookup | None) -> None:
        given = parameters(
            **weight_parameters(row_class),
            row_index="int32*",
            x="float32*",
            y="float32*",
            M="int32",
            K="int32",
            y_stride="int32",
            begin="int32",
            end="int32",
        )
        self._weights = Weights(row_class, lookup, given)
        self._row_index, self._x, self._y = given.row_index, given.x, given.y
        self.M, self._K, self._y_stride = given.M, given.K, given.y_stride
        self._begin, self._end = given.begin, given.end
        self._x_stride = T.Bind(token_floats(self._K))

    def multiply(self, tile: Tile) -> None:
        """Multiply rows while they are decoded."""
        K, lanes = self._K, min(tile.lanes, self._weights.most_lanes)
        tile = replace(tile, lanes=lanes, floats=min(tile.floats, lanes))
        with T.serial(0, _ceil_div(self._end - self._begin, tile.rows)) as i:
            indices = self._rows_from(self._begin + i * tile.rows, tile.rows)
            rows = [self._weights.row(index, K) for index in indices]
            with T.serial(0, _ceil_div(self.M, tile.tokens)) as j:
                tokens = self._tokens_from(j * tile.tokens, tile.tokens)
                totals = local("float32", tile.rows * tile.tokens)
                for n in range(tile.rows * tile.tokens):
                    store(totals, n, constant(0.0, "float32"))
                self._dot(tile, rows, tokens, totals)
                for r, (index, row) in enumerate(zip(indices, rows, strict=True)):
                    for t, token in enumerate(tokens):
                        self._store(row, index, token, totals[r * tile.tokens + t])

    def _dot(self, tile: Tile, rows: list[Row], tokens: list[Expr], totals: Buffer) -> None:
        """Add the products of rows and tokens to their totals."""
        main = _Sums(len(rows), len(tokens), tile.floats)

        def emit(piece: Piece) -> None:
            floats = min(tile.floats, piece.lanes)
            sums = main if piece.lanes == tile.lanes else _Sums(len(rows), len(tokens), floats)
            codes = [self._weights.codes_of(row, piece) for row in rows]
            for j in range(CODES):
                column = piece.column + piece.stride * j
                entries = [T.Bind(row.look_up(c[j])) for row, c in zip(rows, codes, strict=True)]
                for first in range(0, piece.lanes, floats):
                    levels = [T.Bind(row.levels(part(e, first, floats))) for row, e in zip(rows, entries, strict=True)]
                    for t, token in enumerate(tokens):
                        x = T.Bind(load(self._x, token * self._x_stride + column + first, floats))
                        for r, level in enumerate(levels):
                            sums.add_product(r, t, level, x)
            if sums is not main:
                self._add(totals, sums, len(rows), len(tokens))

        whole = (constant(0, "int32"), self._K // COLUMNS)
        each_piece(self._K, self._weights.row_class.bits, tile.lanes, whole, constant(True, "bool"), emit)
        self._add(totals, main, len(rows), len(tokens))

    @staticmethod
    def _add(totals: Buffer, sums: _Sums, rows: int, tokens: int) -> None:
        for r in range(rows):
            for t in range(tokens):
                n = r * tokens + t
                store(totals, n, totals[n] + sums.total(r, t))

    def prefill(self, tile: Prefill) -> None:
        """Decode rows into a tile and multiply that, some columns at a time; results are summed up in y."""
        K, superblocks = self._K, tile.columns // COLUMNS
        tile = replace(tile, lanes=min(tile.lanes, self._weights.most_lanes))
        levels = local("float32", tile.rows * tile.columns)
        full = T.Bind(K // COLUMNS)
        with T.serial(0, _ceil_div(padded(K), tile.columns)) as k:
            first = T.Bind(k * superblocks)
            last = T.Bind(T.min(first + superblocks, full))
            columns = T.Bind(T.min(padded(K) - k * tile.columns, tile.columns))
            with T.serial(0, _ceil_div(self._end - self._begin, tile.rows)) as i:
                indices = self._rows_from(self._begin + i * tile.rows, tile.rows)
                rows = [self._weights.row(index, K) for index in indices]
                for r, row in enumerate(rows):
                    self._decode(row, tile, (first, last), columns, levels, r * tile.columns)
                with T.serial(0, _ceil_div(self.M, tile.tokens)) as j:
                    tokens = self._tokens_from(j * tile.tokens, tile.tokens)
                    self._multiply_tile(tile, rows, indices, tokens, k, columns, levels)

    def _decode(
        self, row: Row, tile: Prefill, blocks: tuple[Expr, Expr], columns: Expr, levels: Buffer, at: int
    ) -> None:
        def emit(piece: Piece) -> None:
            for j, codes in enumerate(self._weights.codes_of(row, piece)):
                column = piece.column - blocks[0] * COLUMNS + piece.stride * j
                values = row.levels(row.look_up(codes))
                store(levels, column + at, values)

        to_the_end = columns % COLUMNS != 0  # only the last superblock can be shorter
        each_piece(self._K, self._weights.row_class.bits, tile.lanes, blocks, to_the_end, emit)

    def _multiply_tile(
        self,
        tile: Prefill,
        rows: list[Row],
        indices: list[Expr],
        tokens: list[Expr],
        k: Expr,
        columns: Expr,
        levels: Buffer,
    ) -> None:
        sums = _Sums(tile.rows, tile.tokens, tile.floats)
        with T.serial(0, columns // tile.floats) as c:
            xs = [
                T.Bind(load(self._x, token * self._x_stride + k * tile.columns + c * tile.floats, tile.floats))
                for token in tokens
            ]
            for r in range(tile.rows):
                level = T.Bind(load(levels, c * tile.floats + r * tile.columns, tile.floats))
                for t, x in enumerate(xs):
                    sums.add_product(r, t, level, x)
        is_first, zero = k == 0, constant(0.0, "float32")
        # All are read before any is written: behind the end, the last row and token are there more than once.
        places = [[T.Bind(token * self._y_stride + self._row_index[index]) for token in tokens] for index in indices]
        before = [[T.Bind(tirx.Select(is_first, zero, self._y[place])) for place in of_row] for of_row in places]
        for r, row in enumerate(rows):
            for t, token in enumerate(tokens):
                value = row.finish(sums.total(r, t), tirx.Select(is_first, self._x_sum(token), zero))
                store(self._y, places[r][t], before[r][t] + value)

    def _rows_from(self, first: Expr, count: int) -> list[Expr]:
        """`count` rows, the last one again and again behind the end."""
        return [T.Bind(T.min(first + r, self._end - 1)) for r in range(count)]

    def _tokens_from(self, first: Expr, count: int) -> list[Expr]:
        """`count` tokens, the last one again and again behind the end."""
        return [T.Bind(T.min(first + t, self.M - 1)) for t in range(count)]

    def _x_sum(self, token: Expr) -> Expr:
        return self._x[token * self._x_stride + padded(self._K)]

    def _store(self, row: Row, index: Expr, token: Expr, total: Expr) -> None:
        value = row.finish(total, self._x_sum(token))
        store(self._y, token * self._y_stride + self._row_index[index], value)


def _ceil_div(a: Expr, b: int) -> Expr:
    return (a + (b - 1)) // b


def matmul(row_class: RowClass, schedule: Schedule, lookup: Lookup | None, name: str) -> Any:
    """A PrimFunc: stored rows begin..end of a class times M prepared tokens.

    Its parameters are those of `skim_matmul_<class>` in skim_kernels.h.
    """
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        product = _Product(row_class, lookup)
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
