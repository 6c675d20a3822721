"""Random layers as kernels read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skim_export.measure.random_layers import RandomLayer, packed_layer
from skim_export.packed import LevelKind, RowClass
from skim_runtime.errors import UserError

__all__ = ["Layers", "parse_classes", "random_layer"]

ROUNDING_BOUNDS = {False: 1e-5, True: 1e-4}  # relative error of float32, and of tokens that are rounded to 16 bits


def parse_classes(widths: Sequence[str]) -> list[RowClass]:
    """Row classes from `3`, a codebook, or `8-affine`, evenly spaced levels; the values of --bits.

    Raises:
        UserError: there is no such class.
    """
    classes = []
    for width in widths:
        match = re.fullmatch(r"([1-8])(-affine)?", width)
        if match is None:
            raise UserError(f"--bits {width}: must be 1 to 8, or 1-affine to 8-affine")
        kind = LevelKind.AFFINE if match[2] else LevelKind.TABLE
        classes.append(RowClass(kind, int(match[1]), None if match[2] else "int8"))
    return list(dict.fromkeys(classes))


def random_layer(random: np.random.Generator, row_class: RowClass, rows: int, columns: int) -> RandomLayer:
    """A layer whose rows all have one class with codebooks of int8; `columns` is a multiple of 32."""
    return packed_layer(random, rows, columns, {row_class.number: 1.0})


@dataclass(frozen=True)
class Layers:
    """Layers with rows of one class, one after the other.

    Attributes:
        row_class: of all rows.
        N: rows of each.
        K: columns.
        count: how many.
        tensors: `codes`, `codebook`, `row_scale`, `row_index` and `column_scale` of all.
        sample: some rows of the last layer, and their weights.
    """

    row_class: RowClass
    N: int
    K: int
    count: int
    tensors: dict[str, npt.NDArray[Any]]
    sample: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]

    @classmethod
    def of(cls, layers: Sequence[RandomLayer], row_class: RowClass) -> Layers:
        """From those that `random_layer` made."""
        N, K = (int(layers[0].attributes[name]) for name in ("N", "K"))
        joined = {
            name: np.concatenate([layer.tensors[name] for layer in layers])
            for name in ("codes", "codebook", "row_scale")
        }
        tensors = {
            "codes": joined["codes"],
            "codebook": joined["codebook"].view(np.uint8),
            "row_scale": joined["row_scale"].astype(np.float32),
            "row_index": np.tile(np.arange(N, dtype=np.int32), len(layers)),
            "column_scale": np.ones(K, np.float32),
        }
        return cls(row_class, N, K, len(layers), tensors, layers[-1].sample())

    def error(self, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> float:
        """How far `y` is from the last layer's product with `x`, relative; NaN if a value was not written."""
        rows, weight = self.sample
        expected = x.astype(np.float64) @ weight.T.astype(np.float64)
        return float(np.linalg.norm(y[:, rows] - expected) / np.linalg.norm(expected))

    def check(self, what: str, integer: bool, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> float:
        """The same, if rounding explains it.

        Raises:
            RuntimeError: `y` is wrong: the figures of `what` would be worth nothing.
        """
        error = self.error(x, y)
        if not error < ROUNDING_BOUNDS[integer]:
            raise RuntimeError(f"{what}: off by {error:.2g} for {len(x)} tokens, more than rounding explains")
        return error
