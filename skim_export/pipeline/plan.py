"""What to expect of a budget before a model is quantized: its size, and its perplexity from the loss landscape.

checkpoint -> calibration statistics -> error curves -> for every budget: bit allocation -> size and loss
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from skim_export.calibration.calibrate_model import gather_statistics
from skim_export.calibration.statistics_store import StatisticsStore
from skim_export.calibration.workers import workers
from skim_export.checkpoint import Architecture, Checkpoint, Linear, Model
from skim_export.checkpoint.torch_reference import TorchReference
from skim_export.pipeline.budget import Budget, graph_bytes, linear_bytes, other_bytes, widths_around
from skim_export.pipeline.calibration_text import CalibrationText
from skim_export.pipeline.free_rows import FreeRows
from skim_export.pipeline.layer_choice import excluding, kept_widths
from skim_export.pipeline.options import ExportOptions, PlanKeywords
from skim_export.pipeline.proof import prove
from skim_export.pipeline.quantize_linear import CheckpointLinear, QuantizeOptions, StoredStatistics
from skim_export.pipeline.rehearsal import rehearse
from skim_export.quantize import DEFAULT_METHOD, METHODS, LinearCurves, allocate_bits
from skim_export.work.resources import Resources
from skim_runtime.errors import UserError
from skim_runtime.evaluation import compare
from skim_runtime.progress import Progress
from skim_runtime.text_file import read_text

__all__ = ["Plan", "PlanRow", "expected_loss", "plan"]

AVERAGES = (2.0, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 4.0, 5.0, 6.0)
ALL_WIDTHS = range(1, 9)
MEASURED_TOKENS = 8192  # of the text that the full-precision model is measured on
CONTEXT = 1024

# The one empirical part of the prediction: increase = LOSS_SCALE * quadratic ** LOSS_POWER, both in nats per token.
# Fitted to exports of the default method from 2 to 4 bits of one model (docs/results.md, "Older measurements").
LOSS_SCALE = 0.67
LOSS_POWER = 1.11


def expected_loss(quadratic: float) -> float:
    """Expected increase of the mean loss, nats per token, from its quadratic form `0.5 * sum F d^2` in nats.

    The quadratic form is the second-order term of the loss with the Fisher information F for the Hessian and without
    its off-diagonal part (Optimal Brain Damage). The power law stands for what refinement gains, and for errors too
    wide for a second-order term.
    """
    return LOSS_SCALE * math.pow(quadratic, LOSS_POWER)


@dataclass(frozen=True)
class PlanRow:
    """What is expected of one budget.

    Attributes:
        bits: average width of the codes as asked for; for a size, the average that it allows.
        effective_bits: everything stored for the layers that the budget is for, in bits per weight.
        nbytes: bytes of the whole exported model.
        quadratic: `0.5 * sum F d^2` over these layers at these widths, nats per token.
        loss_increase: expected increase of the mean loss, nats per token.
        perplexity: expected perplexity; None where that of the full-precision model was not measured.
    """

    bits: float
    effective_bits: float
    nbytes: int
    quadratic: float
    loss_increase: float
    perplexity: float | None

    @property
    def perplexity_factor(self) -> float:
        """Expected perplexity over that of the full-precision model."""
        return _exp(self.loss_increase)


@dataclass(frozen=True)
class Plan:
    """What is expected of a range of budgets.

    Attributes:
        rows: one for each budget, from the smallest to the largest model.
        full_perplexity: measured perplexity of the full-precision model; None without a text.
    """

    rows: list[PlanRow]
    full_perplexity: float | None

    def as_json(self) -> dict[str, Any]:
        """The plan as plain data."""
        rows = [{**asdict(row), "perplexity_factor": row.perplexity_factor} for row in self.rows]
        return {"full_perplexity": self.full_perplexity, "rows": rows}


def plan(
    model: str,
    *,
    bits: Sequence[float] = AVERAGES,
    sizes: Sequence[int] = (),
    text: str | Path | None = None,
    progress: Progress | None = None,
    **keywords: Unpack[PlanKeywords],
) -> Plan:
    """Expect size and perplexity of the default method for a range of budgets, without quantizing.

    The error curves that bit allocation needs are computed once, and every budget is allocated on them as `export`
    would. Left out of the expected loss: the rounding of codebook entries, and the errors of embedding and head, unless
    they share the budget.

    Args:
        model: alias of a recipe, Hugging Face id, directory, or GGUF file.
        bits: average widths of the codes, each from 1 to 8.
        sizes: further budgets, in bytes of the whole model.
        text: a text file to measure the full-precision model on, so that perplexities can be expected.
        progress: told of every step.
        keywords: options of the export, see `ExportOptions`.

    Raises:
        UserError: something given is wrong.
    """
    progress = progress or Progress()
    options, text = ExportOptions(**keywords), None if text is None else Path(text)
    stated = [replace(options, bits=average) for average in sorted(set(bits))]
    stated += [replace(options, size=size) for size in sorted(set(sizes))]
    if text is not None and not text.is_file():
        raise UserError(f"--text {text}: no such file")
    resources = Resources() if options.threads is None else Resources(options.threads)
    opened = excluding(Model.open(model, adapter=options.adapter, progress=progress), options.exclude)
    method, kept = METHODS[DEFAULT_METHOD], kept_widths(opened, options.keep or {})
    opened.check_tokenizer()
    prove(opened)
    rehearse(opened, options)
    cases = [_Case.of(opened, one, QuantizeOptions(method, one.head_width, options.codebook, kept)) for one in stated]
    ids = None if text is None else _text_tokens(opened, text)
    full = None if ids is None else _full_perplexity(opened.checkpoint, ids, resources, progress)
    calibration = CalibrationText(options.calibration_file, options.seed)
    tokens = calibration.tokens(opened, resources=resources, progress=progress)
    wanted = {width for case in cases for width in case.candidates}
    given = {int(width) for rows in kept.values() for width in np.unique(rows[rows > 0])}
    widths = sorted(wanted | given)
    with tempfile.TemporaryDirectory(prefix="skim-plan-") as work:
        store = StatisticsStore(Path(work))
        vocabulary = any(case.quantizing.measures_vocabulary(opened.architecture) for case in cases)
        gather_statistics(opened, tokens, store, vocabulary=vocabulary, resources=resources, progress=progress)
        linears = max((case.free.linears for case in cases), key=len, default=[])
        curves = _error_curves(opened, linears, store, widths, resources, progress)
    rows = [_row(case, opened.architecture, curves, widths, full) for case in cases]
    return Plan(sorted(rows, key=lambda row: row.nbytes), full)


@dataclass(frozen=True)
class _Case:
    """One budget.

    Attributes:
        budget: what was stated.
        quantizing: how, and with which layers in the budget.
        free: what is left to rows without a width.
        rest: bytes of the model beside layers of the budget and graph.
    """

    budget: Budget
    quantizing: QuantizeOptions
    free: FreeRows
    rest: int

    @classmethod
    def of(cls, model: Model, options: ExportOptions, quantizing: QuantizeOptions) -> _Case:
        budget = Budget.of(model, options, quantizing)
        free = FreeRows.of(quantizing.budgeted(model.architecture), quantizing, budget)
        return cls(budget, quantizing, free, other_bytes(model, options, quantizing))

    @property
    def candidates(self) -> range:
        """Widths to choose from: those of an export; for a size all."""
        return ALL_WIDTHS if self.budget.stored else widths_around(self.free.average)


def _error_curves(
    model: Model,
    linears: Sequence[Linear],
    store: StatisticsStore,
    widths: Sequence[int],
    resources: Resources,
    progress: Progress,
) -> dict[str, npt.NDArray[np.float64]]:
    """Error of every row at every width, float64 `[N, widths]` by layer."""
    curves = {}
    progress.start("error curves", len(linears))
    for linear in linears:
        data = CheckpointLinear(model.checkpoint, linear, StoredStatistics(store, linear.name), METHODS[DEFAULT_METHOD])
        curves[linear.name] = data.method.width_errors(data, widths, resources)
        progress.step(linear.name)
    progress.finish()
    return curves


def _row(
    case: _Case,
    architecture: Architecture,
    curves: dict[str, npt.NDArray[np.float64]],
    widths: list[int],
    full_perplexity: float | None,
) -> PlanRow:
    budget, free, quantizing = case.budget, case.free, case.quantizing
    method, codebook = quantizing.method, quantizing.codebook
    choices = []
    for linear in free.searched:
        chosen, costs = budget.choices(case.candidates, linear.in_features, codebook, method)
        columns = [widths.index(width) for width in chosen]
        errors = curves[linear.name][free.mask(linear)][:, columns]
        choices.append(LinearCurves(errors, np.array(chosen, np.uint8), costs))
    allocated = free.filled(allocate_bits(choices, free.bits))
    sized = [(allocated[linear.name], linear.in_features) for linear in free.linears]
    weights = sum(len(bits) * columns for bits, columns in sized)
    code_bits = sum(int(bits.sum()) * columns for bits, columns in sized)
    stored = sum(linear_bytes(bits, columns, codebook, method) for bits, columns in sized)
    apart = quantizing.apart(architecture).values()
    used = {int(b) for row_bits in (*allocated.values(), *apart) for b in np.unique(row_bits)}
    quadratic = 0.5 * sum(_total_error(curves[name], widths, bits) for name, bits in allocated.items())
    increase = expected_loss(quadratic)
    return PlanRow(
        bits=code_bits / weights if budget.stored else budget.bits,
        effective_bits=8 * stored / weights,
        nbytes=stored + case.rest + graph_bytes(architecture, used, method),
        quadratic=quadratic,
        loss_increase=increase,
        perplexity=None if full_perplexity is None else full_perplexity * _exp(increase),
    )


def _total_error(errors: npt.NDArray[np.float64], widths: list[int], bits: npt.NDArray[np.uint8]) -> float:
    columns = np.searchsorted(widths, bits)
    return float(np.take_along_axis(errors, columns[:, None], axis=1).sum())


def _full_perplexity(
    checkpoint: Checkpoint, ids: npt.NDArray[np.int64], resources: Resources, progress: Progress
) -> float:
    """Perplexity of the full-precision model on tokens `[S]`, windows measured side by side on one thread each."""
    context = min(CONTEXT, int(checkpoint.config.max_position_embeddings))
    windows = [ids[start : start + context] for start in range(0, ids.size - 1, context)]
    model = TorchReference.of(checkpoint)
    loss, predicted = 0.0, 0
    progress.start("full precision", len(windows))
    with workers(resources.threads) as pool:
        measured = [pool.submit(compare, model, window, None, context, Progress()) for window in windows]
        for index, future in enumerate(measured):
            evaluation = future.result()
            loss += evaluation.tokens * math.log(evaluation.perplexity)
            predicted += evaluation.tokens
            progress.step(f"window {index + 1}")
    progress.finish()
    return math.exp(loss / predicted)


def _text_tokens(model: Model, path: Path) -> npt.NDArray[np.int64]:
    """The first tokens of a text, int64 `[at most MEASURED_TOKENS]`, without BOS."""
    text = read_text(path, "--text")
    tokenizer = model.checkpoint.tokenizer
    ids = np.array(tokenizer.encode(text, add_special_tokens=False, verbose=False)[:MEASURED_TOKENS], np.int64)
    if ids.size < 2:
        raise UserError(f"--text {path}: has {ids.size} tokens; at least 2 are needed")
    model.check_tokens(np.unique(ids), f"--text {path}")
    return ids


def _exp(nats: float) -> float:
    """`exp`, without overflow where a prediction is far out."""
    return math.exp(min(nats, 700.0))
