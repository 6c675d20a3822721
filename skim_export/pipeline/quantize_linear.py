"""One linear of a model, from the checkpoint and its calibration statistics to its file.

A linear depends on no other and shares no state: any process may work on it, with the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skim_export.calibration.statistics_store import StatisticsStore
from skim_export.checkpoint import Architecture, Checkpoint, Linear, linear_bias, linear_weight
from skim_export.packed import CodebookType, PackedLinear, row_bytes
from skim_export.packed.checkpoint import PackedCheckpoint
from skim_export.pipeline.options import HEAD_BITS
from skim_export.quantize import DEFAULT_METHOD, METHODS, Method, Statistics
from skim_export.work.resources import Resources
from skim_export.work.sealed import write_sealed_array

__all__ = [
    "CheckpointLinear",
    "QuantizeOptions",
    "StoredStatistics",
    "packed_bytes",
    "working_bytes",
    "write_quantized",
    "write_width_errors",
]


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize.

    Attributes:
        method: what to quantize with, one of `METHODS` or one of other parts.
        head_bits: width of embedding and output head; None if their rows take part in the allocation, as far as
            calibration knows their sensitivity.
        codebook: type of codebook entries, "int8" or "float16".
        kept: widths that rows of some layers were given, uint8 `[N]` by the layer's name, 0 for rows without one.
    """

    method: Method = METHODS[DEFAULT_METHOD]
    head_bits: int | None = HEAD_BITS
    codebook: CodebookType = "int8"
    kept: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)

    def given(self, linear: Linear) -> npt.NDArray[np.uint8]:
        """The widths that the rows of a layer were given, uint8 `[N]`, 0 for rows without one."""
        return self.kept.get(linear.name, np.zeros(linear.out_features, np.uint8))

    def measures_vocabulary(self, architecture: Architecture) -> bool:
        """Whether the sensitivities of embedding and head are needed, since they share the budget."""
        return self.head_bits is None and bool(architecture.token_linears)

    def budgeted(self, architecture: Architecture) -> list[Linear]:
        """The linear layers that the budget is for."""
        return architecture.linears + (architecture.token_linears if self.head_bits is None else [])

    def apart(self, architecture: Architecture) -> dict[Linear, npt.NDArray[np.uint8]]:
        """Embeddings and head, as far as the budget is not for them, and the width of every row, uint8 `[N]`."""
        budgeted = self.budgeted(architecture)
        given = {x: self.given(x) for x in architecture.vocabulary_linears if x not in budgeted}
        width = np.uint8(self.head_bits or HEAD_BITS)
        return {linear: np.where(bits > 0, bits, width) for linear, bits in given.items()}


@dataclass(frozen=True)
class StoredStatistics:
    """The calibration statistics of one linear as methods see them.

    Attributes:
        store: of the model.
        name: of the linear.
    """

    store: StatisticsStore
    name: str

    def fisher(self, rows: slice) -> npt.NDArray[np.float32]:
        """See `Statistics`."""
        return self.store.fisher(self.name, rows)

    def input_square(self) -> npt.NDArray[np.float32]:
        """See `Statistics`."""
        return self.store.input_square(self.name)

    def correlation(self) -> npt.NDArray[np.float32]:
        """See `Statistics`."""
        return self.store.correlation(self.name)

    def output_correlation(self, rows: slice) -> npt.NDArray[np.float32] | None:
        """See `Statistics`."""
        return self.store.output_correlation(self.name, rows)


@dataclass(frozen=True)
class CheckpointLinear:
    """A linear in a checkpoint, `LinearData` for a method.

    Attributes:
        checkpoint: the model.
        linear: which of its linears.
        statistics: of the linear; None if the method needs none.
        method: that it is quantized with.
    """

    checkpoint: Checkpoint
    linear: Linear
    statistics: Statistics | None
    method: Method

    @property
    def name(self) -> str:
        """For messages."""
        return self.linear.name

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        return self.linear.out_features, self.linear.in_features

    def weight(self, rows: slice) -> npt.NDArray[np.float32]:
        """See `LinearData`."""
        return linear_weight(self.checkpoint, self.linear, rows)

    def sensitivity(self, rows: slice) -> npt.NDArray[np.float32] | None:
        """See `LinearData`."""
        return None if self.statistics is None else self.method.sensitivity(self.statistics, rows)

    def correlation(self) -> npt.NDArray[np.float32]:
        """See `LinearData`."""
        assert self.statistics is not None  # correlated methods need them
        return self.statistics.correlation()

    def output_correlation(self, rows: slice) -> npt.NDArray[np.float32] | None:
        """See `LinearData`."""
        return None if self.statistics is None else self.statistics.output_correlation(rows)


def working_bytes(linear: Linear, resources: Resources, method: Method) -> int:
    """Memory that it takes to quantize a linear, a careful estimate."""
    return method.working_bytes(linear.out_features, linear.in_features, resources) + 2 * packed_bytes(linear)


def packed_bytes(linear: Linear) -> int:
    """Bytes of a packed linear, at most: at 8 bits."""
    return linear.out_features * row_bytes(8, linear.in_features)


def write_width_errors(path: Path, data: CheckpointLinear, widths: Sequence[int], resources: Resources) -> None:
    """Keep the error curves of a linear in a .npy file, float64 `[N, widths]`, see `Method.width_errors`."""
    write_sealed_array(path, data.method.width_errors(data, widths, resources))


def write_quantized(
    data: CheckpointLinear,
    bits: npt.NDArray[np.uint8],
    output: PackedCheckpoint,
    codebook: CodebookType,
    resources: Resources,
) -> None:
    """Quantize a linear whose rows have their widths to its file, in runs of rows; on the CPU always the same bytes.

    Args:
        data: the linear.
        bits: width of each row, uint8 `[N]`.
        output: where the packed linear goes.
        codebook: type of codebook entries.
        resources: what to use.

    Raises:
        UserError: a weight is not finite.
    """
    columns = data.method.columns(data, bits, resources)
    bias = linear_bias(data.checkpoint, data.linear)
    parts, errors = [], []
    for rows in resources.chunks(*data.shape):
        quantized = data.method.quantize_rows(data, rows, bits[rows], columns, codebook, resources)
        parts.append(quantized.pack(None if bias is None else bias[rows]))
        errors.append(quantized.errors)
    packed = PackedLinear.concatenate(parts)
    report = {
        "name": data.name,
        "shape": [packed.out_features, packed.in_features],
        "rows_per_class": list(packed.rows_per_class),
        "code_bits": packed.code_bits,
        "effective_bits": packed.effective_bits,
        "bytes": packed.nbytes,
        "error": float(np.concatenate(errors).sum()),
    }
    output.write(data.name, packed, report)
