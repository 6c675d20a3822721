"""A row of the weights as floats: what the embedding needs."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from skim_export.bundle.kernels.lookup import Lookups
from skim_export.bundle.kernels.tir import constant, parameters, store
from skim_export.bundle.kernels.weights import Piece, Weights, each_piece, padded, weight_parameters
from skim_export.packed import COLUMNS, RowClass

__all__ = ["gather"]


def gather(row_class: RowClass, lanes: int, lookups: Lookups, name: str) -> Any:
    """A PrimFunc: one stored row of a class -> y, column scale not applied.

    Its parameters are those of `skim_gather_<class>` in skim_kernels.h; `lanes` of a superblock are decoded at once.
    """
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        given = parameters(**weight_parameters(row_class), y="float32*", K="int32", row="int32")
        weights = Weights(row_class, lookups.bytes, lookups.floats, given)
        row = weights.row(given.row, given.K)

        def emit(piece: Piece) -> None:
            for j, codes in enumerate(weights.codes_of(row, piece)):
                store(given.y, piece.column + piece.stride * j, row.weights(row.floats(row.look_up(codes))))

        blocks = (constant(0, "int32"), padded(given.K) // COLUMNS)
        each_piece(given.K, row_class.bits, min(lanes, weights.most_lanes), blocks, constant(True, "bool"), emit)
    return ib.get()
