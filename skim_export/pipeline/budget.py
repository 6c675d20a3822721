"""What the linear layers of a model may take, and what a row takes at each width."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from skim_export.checkpoint import Architecture, Checkpoint, Model, skeleton
from skim_export.graph.rotary import table_values
from skim_export.packed import CodebookType, row_bytes
from skim_export.pipeline.options import ExportOptions
from skim_export.pipeline.quantize_linear import QuantizeOptions
from skim_export.quantize import ONE_WIDTH, Method
from skim_runtime.errors import UserError

__all__ = [
    "Budget",
    "excluded_weights",
    "graph_bytes",
    "linear_bytes",
    "other_bytes",
    "rotary_values",
    "unpacked_parameters",
    "widths_around",
]

GRAPH_BYTES = 1 << 20  # room for the graph itself when a size is asked for
ROW_CLASS_BYTES = 1
COLUMN_SCALE_BYTES = 2


def widths_around(bits: float) -> range:
    """The widths that rows may get around an average: two less to two more, within 1..8."""
    return range(max(1, math.floor(bits) - 2), min(8, math.ceil(bits) + 2) + 1)


@dataclass(frozen=True)
class Budget:
    """The budget of the linear layers.

    Attributes:
        bits: bits per weight.
        stored: whether all that is stored counts (codes, codebooks, scales, row classes), or the codes alone.
    """

    bits: float
    stored: bool = False

    @classmethod
    def of(cls, model: Model, options: ExportOptions, quantizing: QuantizeOptions) -> Budget:
        """The budget from the one way in which the options state it.

        Raises:
            UserError: the size is less than the rest of the model takes.
        """
        size, head_bits = options.size, quantizing.head_bits
        if size is None:
            stated = options.bits if options.effective_bits is None else options.effective_bits
            assert stated is not None  # a caller's business: only it knows the model's recipe
            return cls(stated, stored=options.effective_bits is not None)
        linears = quantizing.budgeted(model.architecture)
        weights = sum(linear.out_features * linear.in_features for linear in linears)
        rest = other_bytes(model, options, quantizing) + GRAPH_BYTES
        if size <= rest + weights // 8:
            head = f"the embedding and head at {head_bits} bits, " if head_bits else ""
            floats = "excluded layers, " if model.architecture.excluded else ""
            raise UserError(
                f"size of {size / 1e6:.1f}MB: too small, {head}{floats}norms and graph take {rest / 1e6:.1f}MB, and "
                f"the {'linear layers' if head_bits else 'other weights'} {weights / 8e6:.1f}MB at 1 bit"
            )
        return cls(min(12.0, 8 * (size - rest) / weights), stored=True)

    def total(self, shapes: Iterable[tuple[int, int]], *, column_scale: bool) -> int:
        """Bits that the rows of all layers `(N, K)` may take together, beside their column scales if they have any."""
        shapes = list(shapes)
        counted = self.stored and column_scale
        column_scales = sum(8 * COLUMN_SCALE_BYTES * columns for _, columns in shapes) if counted else 0
        weights = sum(rows * columns for rows, columns in shapes)
        return int(self.bits * weights) - column_scales

    def row_costs(
        self, widths: Iterable[int], columns: int, codebook: CodebookType, method: Method
    ) -> npt.NDArray[np.int64]:
        """Bits that one row of `columns` weights takes at each width, int64 `[widths]`.

        Args:
            widths: the widths, ascending.
            columns: K.
            codebook: type of codebook entries, "int8" or "float16".
            method: that rows are quantized with.
        """
        if not self.stored:
            return np.array([bits * columns for bits in widths], np.int64)
        return np.array([8 * (_row_bytes(b, columns, codebook, method) + ROW_CLASS_BYTES) for b in widths], np.int64)

    def choices(
        self, widths: Iterable[int], columns: int, codebook: CodebookType, method: Method
    ) -> tuple[list[int], npt.NDArray[np.int64]]:
        """The widths worth choosing from and what they cost: none that costs as much as a wider one.

        In short rows a codebook of 6 bits takes more than affine levels of 7 or 8.
        """
        widths = list(widths)
        costs = self.row_costs(widths, columns, codebook, method)
        worth = [i for i in range(len(widths)) if (costs[i] < costs[i + 1 :]).all()]
        return [widths[i] for i in worth], costs[worth]


def unpacked_parameters(model: Model) -> int:
    """Number of values in no matrix, which stay float32: norms, biases, convolutions."""
    matrices = {f"{module}.weight" for module in model.architecture.matrices}
    tensors = skeleton(model.checkpoint).state_dict()
    return sum(tensor.numel() for name, tensor in tensors.items() if name not in matrices)


def excluded_weights(model: Model) -> int:
    """Number of weights of the layers that are not packed."""
    return sum(linear.out_features * linear.in_features for linear in model.architecture.excluded_linears)


def linear_bytes(bits: npt.NDArray[np.uint8], columns: int, codebook: CodebookType, method: Method) -> int:
    """Bytes stored for one linear layer with no column scale, its bias left out.

    Args:
        bits: width of each row, uint8 `[N]`.
        columns: K.
        codebook: type of codebook entries, "int8" or "float16".
        method: that it is quantized with.
    """
    widths, rows = np.unique(bits, return_counts=True)
    per_row = [_row_bytes(b, columns, codebook, method) for b in widths.tolist()]
    row_classes = ROW_CLASS_BYTES * len(bits) if len(widths) > 1 else 0
    return int(rows @ per_row) + row_classes


def _row_bytes(bits: int, columns: int, codebook: CodebookType, method: Method) -> int:
    """Codes and levels of a row."""
    return row_bytes(bits, columns) + method.levels.level_bytes(bits, columns, codebook)


def other_bytes(model: Model, options: ExportOptions, quantizing: QuantizeOptions) -> int:
    """What the model takes beside budgeted layers and graph.

    That is embedding and head, excluded layers, norms, biases, and rotary tables. Norms count as float32, as biases
    are, whatever the graph's type.
    """
    apart = quantizing.apart(model.architecture).items()
    head = sum(linear_bytes(bits, linear.in_features, quantizing.codebook, ONE_WIDTH) for linear, bits in apart)
    floats = excluded_weights(model) + rotary_values(model, options.context)
    return head + 4 * unpacked_parameters(model) + options.float_bytes * floats


def rotary_values(model: Model, context: int | None) -> int:
    """Number of values in the rotary tables for `context` positions; by default all that the model was made for."""
    return _rotary_values(model.checkpoint, context or model.checkpoint.config.max_position_embeddings)


@lru_cache(maxsize=1)  # an estimate asks several times, and a skeleton takes a while
def _rotary_values(checkpoint: Checkpoint, positions: int) -> int:
    return table_values(skeleton(checkpoint), positions)


def graph_bytes(architecture: Architecture, widths: Iterable[int], method: Method) -> int:
    """About what the graph itself takes: its nodes, and the functions for stock ONNX Runtime.

    The constants were fitted to exported models; they are right to a few KB.

    Args:
        architecture: of the model.
        widths: that there are in the whole model.
        method: of its linear layers.
    """
    different = set(widths)
    columns = {linear.in_features for linear in architecture.linears}
    windowed = sum(any(method.levels.memory(b, k) for k in columns) for b in different)
    return 9_000 + 10_000 * len(architecture.blocks) + 3_200 * len(different) + 1_700 * windowed
