"""What a quantization method is composed of, and the one way in which a linear is quantized with it.

A method says what counts (its objective), what the rows of a linear have in common (the scale of the columns, and how
these go together), how a row gets levels and codes (its `LevelFit`), how widths are chosen, and what memory all that
takes. Where the numbers come from is for `LinearData` to know: arrays, a checkpoint with calibration statistics, or
something that costs as much.

A new method of these parts is a line in `METHODS`. One with a part of its own has that part here or in a module beside
this one: an objective is a function of the statistics, other levels are a `LevelFit`. Command line, costs, memory,
budgets and benchmarks follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from skim_export.packed import CodebookType, PackedLinear, RowLevels
from skim_export.quantize.level_fits import FreeLevels, LevelFit, RangeLevels, WorthwhileLevels
from skim_export.quantize.linear_data import LinearArrays, LinearData, Statistics
from skim_export.quantize.native_library import refine_bytes
from skim_export.quantize.refinement import Coupling, damped
from skim_export.quantize.row_feedback import fit_in_turns
from skim_export.quantize.scaling import fit_column_scale, power_of_two_scale
from skim_export.quantize.solver import POINTS, WeightRows
from skim_export.work.resources import FLOAT32_BYTES, ROW_GROUP, WORKING_BYTES, Resources
from skim_runtime.errors import UserError

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "ONE_WIDTH",
    "Columns",
    "Method",
    "Objective",
    "QuantizedLinear",
    "fisher_objective",
    "layer_objective",
    "method_named",
    "quantize_linear",
]

Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]

_SCALE_TRAINING_BYTES = 32  # for one weight; all of them are in memory at once
_FACTOR_MATRICES = 4  # the correlation, and what its factor is made of

Objective = Callable[[Statistics, slice], Float32]
"""What the squared errors of the weights of some rows count, float32 `[R, K]`, at least 0."""


def fisher_objective(statistics: Statistics, rows: slice) -> Float32:
    """The Fisher information of every weight (SqueezeLLM, arXiv 2306.07629)."""
    return statistics.fisher(rows)


def layer_objective(statistics: Statistics, rows: slice) -> Float32:
    """The mean square of its input, which gives the error of the layer's output."""
    square = statistics.input_square()
    return np.ascontiguousarray(np.broadcast_to(square, (rows.stop - rows.start, square.size)))


@dataclass(frozen=True)
class QuantizedLinear:
    """One quantized linear, or some rows of it.

    Attributes:
        codes: uint8 `[N, K]`.
        levels: the levels of the rows.
        column_scale: positive, float16 `[K]`.
        errors: weighted squared error of each row as stored, float64 `[N]`.
    """

    codes: UInt8
    levels: RowLevels
    column_scale: Float16
    errors: Float64

    def pack(self, bias: Float32 | None = None) -> PackedLinear:
        """The rows in the packed format, with a bias float32 `[N]` if there is one."""
        ones = bool((self.column_scale == 1).all())
        return PackedLinear.pack(self.codes, self.levels, None if ones else self.column_scale, bias)


@dataclass(frozen=True)
class Columns:
    """What the rows of a linear have in common; given that, each is quantized by itself.

    Attributes:
        scale: of the columns, positive, float16 `[K]`.
        coupling: of the columns; None if the errors of a row's weights are not seen together.
    """

    scale: Float16
    coupling: Coupling | None = None


@dataclass(frozen=True)
class Method:
    """What a method is made of, and what it does with a linear.

    Attributes:
        objective: what weighs the squared errors of the weights; None, all alike.
        levels: how rows get levels and codes.
        allocation: rows get their widths greedily over the whole model (SKIM, arXiv 2412.04180, section 3.2).
        column_scale: a trained scale of the columns (SKIM, section 3.3).
        correlated: the errors of a row's weights are seen together (error feedback, and for free levels coordinate
            descent).
        rows_correlated: and the errors of rows, where it is known how their outputs go together.
    """

    objective: Objective | None
    levels: LevelFit
    allocation: bool = False
    column_scale: bool = False
    correlated: bool = False
    rows_correlated: bool = False

    @property
    def needs_statistics(self) -> bool:
        """Whether it looks at more than the weights, so that the model has to be calibrated."""
        return self.objective is not None or self.correlated

    def sensitivity(self, statistics: Statistics, rows: slice) -> Float32 | None:
        """What the squared errors of the weights of some rows count, float32 `[R, K]`; None if all the same."""
        return None if self.objective is None else self.objective(statistics, rows)

    def working_bytes(self, rows: int, columns: int, resources: Resources) -> int:
        """Memory that it takes to quantize a linear `[rows, columns]` beside the result, a careful estimate."""
        run = resources.chunks(rows, columns)[0]
        total: int = (run.stop - run.start) * columns * WORKING_BYTES
        if self.correlated:
            total += _FACTOR_MATRICES * FLOAT32_BYTES * columns * columns
            total += refine_bytes(columns, self.levels.refined_bits, resources.threads)
        if self.column_scale:
            total += rows * columns * _SCALE_TRAINING_BYTES
        return total

    def width_errors(self, data: LinearData, widths: Sequence[int], resources: Resources) -> Float64:
        """The error curves that bits are allocated by: error of each row at each width, float64 `[N, widths]`.

        That is before the columns have their own scale, which needs the widths, and without their coupling.

        Args:
            data: the linear.
            widths: in bits, ascending.
            resources: what to use.
        """
        scale = _unit_scale(data, resources)
        errors = []
        for run in resources.chunks(*data.shape):
            errors.append(self.levels.width_errors(self._rows(data, run, scale, resources), widths))
        return np.concatenate(errors)

    def columns(self, data: LinearData, bits: UInt8, resources: Resources) -> Columns:
        """What the rows of a linear have in common, given the width of each, uint8 `[N]`."""
        return Columns(self.scale(data, bits, resources), self.coupling(data, resources))

    def scale(self, data: LinearData, bits: UInt8, resources: Resources) -> Float16:
        """The column scale, float16 `[K]`; if it is trained, on all rows at once."""
        if not self.column_scale:
            return _unit_scale(data, resources)
        weight, sensitivity = self._read(data, slice(0, data.shape[0]))
        sensitivity = np.ones_like(weight) if sensitivity is None else sensitivity
        return fit_column_scale(weight, sensitivity, bits, resources)

    def coupling(self, data: LinearData, resources: Resources) -> Coupling | None:
        """How the columns go together; the time it takes grows with the cube of their number."""
        columns = data.shape[1]
        if not self.correlated:
            return self.no_coupling(columns)
        lanes = self.levels.in_lanes(columns)
        return Coupling.of(damped(data.correlation()), self._by_column(data), resources.device, lanes=lanes)

    def no_coupling(self, columns: int) -> Coupling | None:
        """What `coupling` is for columns that do not go together, in no time."""
        lanes = self.levels.in_lanes(columns)
        return Coupling.none(columns, lanes=lanes) if self.correlated or lanes else None

    def quantize_rows(
        self,
        data: LinearData,
        rows: slice,
        bits: UInt8,
        columns: Columns,
        codebook: CodebookType,
        resources: Resources,
    ) -> QuantizedLinear:
        """Quantize some rows of a linear; what becomes of a row depends on those of its block of `ROW_GROUP` at most.

        Args:
            data: the linear.
            rows: which of its rows: whole blocks but for the last one.
            bits: the widths of those, uint8 `[R]`, 1..8.
            columns: of the whole linear, see `columns`.
            codebook: type of codebook entries.
            resources: what to use.

        Raises:
            UserError: a weight or a sensitivity is not finite.
        """
        given = self._rows(data, rows, columns.scale, resources)
        outputs = data.output_correlation(rows) if self.rows_correlated else None
        fit = partial(self.levels.fit, codebook=codebook, coupling=columns.coupling)
        codes, levels, errors = fit(given, bits) if outputs is None else fit_in_turns(given, outputs, bits, fit)
        return QuantizedLinear(codes, levels, columns.scale, errors)

    def _by_column(self, data: LinearData) -> Float64 | None:
        """Sensitivity of every column, float64 `[K]`; summed in groups of rows, whatever fits into memory."""
        if self.objective is None:
            return None
        rows, columns = data.shape
        total = np.zeros(columns)
        for start in range(0, rows, ROW_GROUP):
            group = data.sensitivity(slice(start, min(start + ROW_GROUP, rows)))
            assert group is not None  # methods with an objective are given data with sensitivities
            total += group.sum(axis=0, dtype=np.float64)
        return total

    def _rows(self, data: LinearData, rows: slice, scale: Float16, resources: Resources) -> WeightRows:
        weight, sensitivity = self._read(data, rows)
        return WeightRows(weight, sensitivity, scale.astype(np.float32), resources)

    def _read(self, data: LinearData, rows: slice) -> tuple[Float32, Float32 | None]:
        """Weights and sensitivities of some rows, checked."""
        weight, sensitivity = data.weight(rows), data.sensitivity(rows)
        if sensitivity is None and self.objective is not None:
            raise ValueError(f"{data.name}: a method with an objective needs sensitivities")
        for what, array in (("weight", weight), ("sensitivity", sensitivity)):
            if array is not None and not np.isfinite(array).all():
                row, column = np.argwhere(~np.isfinite(array))[0].tolist()
                place = f"row {rows.start + row}, column {column}"
                raise UserError(f"{data.name}: {what} at {place} is {array[row, column]}, must be finite")
        if sensitivity is not None and sensitivity.min() < 0:
            raise UserError(f"{data.name}: sensitivities must be at least 0, got {sensitivity.min():g}")
        return weight, sensitivity


METHODS = {
    "skim+": Method(fisher_objective, FreeLevels(windows=True), allocation=True, correlated=True, rows_correlated=True),
    "skim": Method(fisher_objective, FreeLevels(), allocation=True, column_scale=True),
    "squeezellm": Method(fisher_objective, FreeLevels()),
    "gptq": Method(layer_objective, RangeLevels(), correlated=True),
    "weights": Method(None, FreeLevels(POINTS)),
    "rtn": Method(None, RangeLevels()),
}

DEFAULT_METHOD = "skim+"

ONE_WIDTH = Method(None, WorthwhileLevels())
"""For a matrix whose rows all have the same width, and whose weights all matter alike: embedding and output head."""


def method_named(name: str) -> Method:
    """One of `METHODS`.

    Raises:
        UserError: there is none of that name.
    """
    if name not in METHODS:
        raise UserError(f"--method {name}: must be one of {', '.join(METHODS)}")
    return METHODS[name]


def quantize_linear(
    weight: Float32,
    sensitivity: Float32 | None,
    bits: UInt8,
    method: Method,
    *,
    correlation: Float32 | None = None,
    output_correlation: Float32 | None = None,
    codebook: CodebookType = "int8",
    resources: Resources | None = None,
    name: str = "weight",
) -> QuantizedLinear:
    """Quantize one linear whose rows have their widths, all of it in memory.

    Args:
        weight: W, float32 `[N, K]`.
        sensitivity: weights of the squared errors, float32 `[N, K]`, at least 0; None if the method has no objective.
        bits: width of each row, uint8 `[N]`, 1..8.
        method: its objective and allocation are the caller's part.
        correlation: of the columns, float32 `[K, K]`, 1 on its diagonal; for methods that are `correlated`.
        output_correlation: of the rows of each block, float32 `[N, ROW_GROUP]`; for those that are `rows_correlated`.
        codebook: type of codebook entries.
        resources: what to use; None for all threads. The result does not depend on their number.
        name: of the linear, for messages.

    Raises:
        UserError: a weight or a sensitivity is not finite.
    """
    resources = Resources() if resources is None else resources
    data = LinearArrays(weight, sensitivity, correlation, name, output_correlation)
    columns = method.columns(data, bits, resources)
    return method.quantize_rows(data, slice(0, len(weight)), bits, columns, codebook, resources)


def _unit_scale(data: LinearData, resources: Resources) -> Float16:
    """The same power of two for all columns, float16 `[K]`."""
    largest = 0.0
    for run in resources.chunks(*data.shape):
        weight = data.weight(run)
        largest = max(largest, float(weight.max()), -float(weight.min()))
    return power_of_two_scale(largest, data.shape[1])
