"""From a checkpoint to a running model: this file reads the way the data flows.

checkpoint -> calibration statistics -> error curves -> bit allocation -> packed linears -> ONNX model
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from skim_export.budget import Budget, check_stated, unpacked_parameters, widths_around
from skim_export.calibration import calibrate, self_generated, tokens_from_file
from skim_export.checkpoint import (
    Architecture,
    Checkpoint,
    Linear,
    architecture_of,
    linear_bias,
    linear_weight,
    resolve,
)
from skim_export.files import staged_directory
from skim_export.graph.external_data import save_model
from skim_export.graph.genai_builder import LIBRARY_NAME, DecoderBuilder
from skim_export.packed_checkpoint import PackedCheckpoint
from skim_export.quantize import (
    CodebookType,
    LayerCurves,
    Method,
    QuantizedLinear,
    allocate_bits,
    even_bits,
    quantize_linear,
    quantize_uniform,
    width_errors,
)
from skim_export.report import REPORT_NAME, ExportReport, Part, write_report
from skim_export.statistics_store import StatisticsStore
from skim_runtime.errors import UserError
from skim_runtime.library import library_path
from skim_runtime.progress import Progress

__all__ = [
    "QuantizeOptions",
    "allocate",
    "calibration_tokens",
    "emit",
    "export",
    "gather_statistics",
    "quantize_embeddings",
    "quantize_linears",
]

SEQUENCES = 32
SEQUENCE_LENGTH = 256


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize.

    Attributes:
        method: "skim", "squeezellm" or "rtn".
        head_bits: width of embedding and output head.
        codebook: type of codebook entries, "int8" or "float16".
    """

    method: Method = "skim"
    head_bits: int = 8
    codebook: CodebookType = "int8"

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise UserError(f"--method {self.method}: must be one of {', '.join(get_args(Method))}")
        if self.head_bits not in range(1, 9):
            raise UserError(f"--head-bits {self.head_bits}: must be a whole number from 1 to 8")
        if self.codebook not in get_args(CodebookType):
            raise UserError(f"--codebook {self.codebook}: must be one of {', '.join(get_args(CodebookType))}")


def calibration_tokens(
    checkpoint: Checkpoint,
    architecture: Architecture,
    calib: Path | None,
    *,
    seed: int,
    threads: int,
    progress: Progress,
) -> npt.NDArray[np.int64]:
    """Calibration tokens, int64 `[SEQUENCES, SEQUENCE_LENGTH]`: from a text file, or written by the model itself."""
    if calib is not None:
        return tokens_from_file(checkpoint, calib, SEQUENCES, SEQUENCE_LENGTH)
    return self_generated(
        checkpoint, architecture, SEQUENCES, SEQUENCE_LENGTH, seed=seed, threads=threads, progress=progress
    )


def gather_statistics(
    checkpoint: Checkpoint,
    architecture: Architecture,
    tokens: npt.NDArray[np.int64],
    store: StatisticsStore,
    *,
    threads: int,
    progress: Progress,
) -> None:
    """Run the calibration tokens `[S, T]` through the model and keep the statistics of every linear layer."""
    for linear, statistics in calibrate(checkpoint, architecture, tokens, threads=threads, progress=progress):
        store.write(linear.name, statistics.fisher)


def allocate(
    checkpoint: Checkpoint,
    architecture: Architecture,
    store: StatisticsStore,
    options: QuantizeOptions,
    budget: Budget,
    *,
    threads: int,
    progress: Progress,
) -> dict[str, npt.NDArray[np.uint8]]:
    """The width of every row of every linear layer, uint8 `[N]` by name.

    Method "skim" spends the budget greedily over all rows of the model, the others give every layer the same average.

    Raises:
        UserError: the budget is too small.
    """
    linears = architecture.linears
    average = _even_average(linears, options, budget)
    if options.method != "skim":
        return {linear.name: even_bits(linear.out_features, average) for linear in linears}
    layers = []
    progress.start("error curves", len(linears))
    for linear in linears:
        widths, costs = budget.choices(widths_around(average), linear.in_features, options.codebook)
        errors = width_errors(linear_weight(checkpoint, linear), store.read(linear.name), widths, threads=threads)
        layers.append(LayerCurves(errors, np.array(widths, np.uint8), costs))
        progress.step(linear.name)
    progress.finish()
    bits = allocate_bits(layers, budget.total(_shapes(linears)))
    return {linear.name: row_bits for linear, row_bits in zip(linears, bits, strict=True)}


def quantize_linears(
    checkpoint: Checkpoint,
    architecture: Architecture,
    store: StatisticsStore,
    bits: dict[str, npt.NDArray[np.uint8]],
    output: PackedCheckpoint,
    options: QuantizeOptions,
    *,
    threads: int,
    progress: Progress,
) -> None:
    """Quantize the linear layers of the decoder blocks, one after the other, into a packed checkpoint.

    Raises:
        UserError: a weight is not finite.
    """
    progress.start("quantizing", len(architecture.linears))
    for linear in architecture.linears:
        quantized = quantize_linear(
            linear_weight(checkpoint, linear),
            None if options.method == "rtn" else store.read(linear.name),
            bits[linear.name],
            options.method,
            codebook=options.codebook,
            threads=threads,
            name=linear.name,
        )
        _store(output, linear.name, quantized, linear_bias(checkpoint, linear))
        progress.step(linear.name)
    progress.finish()


def quantize_embeddings(
    checkpoint: Checkpoint, architecture: Architecture, output: PackedCheckpoint, options: QuantizeOptions, threads: int
) -> None:
    """Quantize the embedding, and the head where it is another matrix, at one width for all rows."""
    modules = [architecture.embedding] if architecture.tied else [architecture.embedding, architecture.head]
    for module in modules:
        weight = checkpoint.tensor(f"{module}.weight").numpy()
        quantized = quantize_uniform(weight, options.head_bits, codebook=options.codebook, threads=threads, name=module)
        _store(output, module, quantized, None)


def _store(
    output: PackedCheckpoint, name: str, quantized: QuantizedLinear, bias: npt.NDArray[np.float32] | None
) -> None:
    packed = quantized.pack(bias)
    report = {
        "name": name,
        "shape": [packed.out_features, packed.in_features],
        "rows_per_class": list(packed.rows_per_class),
        "code_bits": packed.code_bits,
        "effective_bits": packed.effective_bits,
        "bytes": packed.nbytes,
        "error": float(quantized.errors.sum()),
    }
    output.write(name, packed, report)


def _shapes(linears: list[Linear]) -> list[tuple[int, int]]:
    return [(linear.out_features, linear.in_features) for linear in linears]


def _even_average(linears: list[Linear], options: QuantizeOptions, budget: Budget) -> float:
    """The widest average, in steps of 1/64 bit, that the budget allows if it is the same in every layer."""
    if not budget.stored:
        return budget.bits
    costs = [
        budget.row_costs(range(1, 9), linear.in_features, options.codebook, affine=options.method == "rtn")
        for linear in linears
    ]

    def cost(average: float) -> int:
        widths = [even_bits(linear.out_features, average) for linear in linears]
        return sum(int(row_costs[bits - 1].sum()) for row_costs, bits in zip(costs, widths, strict=True))

    total = budget.total(_shapes(linears))
    affordable = [steps / 64 for steps in range(64, 8 * 64 + 1) if cost(steps / 64) <= total]
    if not affordable:
        raise UserError(f"{budget.bits:.3g} effective bits per weight are too few: codes of 1 bit take more")
    return max(affordable)


def emit(
    checkpoint: Checkpoint, architecture: Architecture, packed: PackedCheckpoint, output: Path, progress: Progress
) -> None:
    """Write the ONNX model of a packed checkpoint, and beside it the configuration, tokenizer and operator library.

    Raises:
        UserError: the model builder has another version, or the operator library is not built.
    """
    read = lru_cache(maxsize=1)(packed.read)  # the tensors of a layer are asked for one after the other
    builder = DecoderBuilder(checkpoint, architecture, read, output)
    save_model(builder.build(), output, progress)
    builder.write_configuration()
    shutil.copyfile(library_path(), output.parent / LIBRARY_NAME)


def export(
    model: str,
    output: str | Path,
    *,
    bits: float | None = None,
    effective_bits: float | None = None,
    size: int | None = None,
    method: Method = "skim",
    head_bits: int = 8,
    codebook: CodebookType = "int8",
    calib: str | Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Quantize a model and write it as ONNX.

    Everything is prepared in a directory beside the output's and moved into place at the end, model.onnx last.

    Args:
        model: alias of a recipe, Hugging Face id, or directory.
        output: the ONNX file to write; the other files go beside it.
        bits: average width of the codes of the linear layers, 1 to 8; 3 unless another budget is given.
        effective_bits: the same with everything stored for the linear layers counted in.
        size: bytes of the ONNX file and its data together.
        method: "skim", "squeezellm" or "rtn".
        head_bits: width of embedding and output head, 1 to 8.
        codebook: type of codebook entries, "int8" or "float16".
        calib: a text file for calibration; without it the model writes its own text.
        seed: seed of that text.
        threads: threads to use, all by default; the result does not depend on it.
        force: replace an output that exists.
        progress: told of every step.

    Returns:
        What was written, and what each part of the model takes.

    Raises:
        UserError: something given is wrong; nothing was written.
    """
    started = time.monotonic()
    progress = progress or Progress()
    threads = threads or len(os.sched_getaffinity(0))
    output, calib = Path(output), None if calib is None else Path(calib)
    options = QuantizeOptions(method, head_bits, codebook)
    check_stated(bits, effective_bits, size)
    _check_output(output, force)
    if calib is not None and not calib.is_file():
        raise UserError(f"--calib {calib}: no such file")
    checkpoint = Checkpoint(resolve(model, progress=progress))
    checkpoint.require_tokenizer()
    architecture = architecture_of(checkpoint)
    budget = Budget.of(
        checkpoint,
        architecture,
        bits=bits,
        effective_bits=effective_bits,
        size=size,
        head_bits=head_bits,
        codebook=codebook,
    )
    with staged_directory(output.parent, last=output.name) as stage:
        with tempfile.TemporaryDirectory(prefix=".packed-", dir=stage) as work:
            packed = PackedCheckpoint(Path(work))
            store = StatisticsStore(Path(work))
            if method != "rtn":
                tokens = calibration_tokens(
                    checkpoint, architecture, calib, seed=seed, threads=threads, progress=progress
                )
                gather_statistics(checkpoint, architecture, tokens, store, threads=threads, progress=progress)
            widths = allocate(checkpoint, architecture, store, options, budget, threads=threads, progress=progress)
            quantize_linears(
                checkpoint, architecture, store, widths, packed, options, threads=threads, progress=progress
            )
            quantize_embeddings(checkpoint, architecture, packed, options, threads)
            emit(checkpoint, architecture, packed, stage / output.name, progress)
            layers = [packed.report(name) for name in packed.names()]
        parts = _parts(architecture, checkpoint, layers, stage / output.name)
        recorded = {
            "model": model,
            "method": method,
            "bits": bits,
            "effective_bits": effective_bits,
            "size": size,
            "head_bits": head_bits,
            "codebook": codebook,
            "calib": None if calib is None else calib.name,
            "seed": seed,
        }
        write_report(stage, recorded, parts, layers)
    return ExportReport(output, parts, time.monotonic() - started)


def _check_output(output: Path, force: bool) -> None:
    if output.suffix != ".onnx":
        raise UserError(f"--output {output}: must name an .onnx file, such as {output / 'model.onnx'}")
    if output.is_dir():
        raise UserError(f"--output {output}: is a directory; name a file in it")
    others = (output, output.with_name(output.name + ".data"), output.with_name(REPORT_NAME))
    for path in others:
        if path.exists() and not force:
            raise UserError(f"--output: {path} exists; use --force to replace it")


def _parts(architecture: Architecture, checkpoint: Checkpoint, layers: list[dict[str, Any]], path: Path) -> list[Part]:
    """What the linear layers, the embeddings, the rest and the whole model take, from the files themselves."""
    embeddings = {architecture.embedding, architecture.head}
    total = path.stat().st_size + path.with_name(path.name + ".data").stat().st_size
    parts = []
    for name, chosen in (
        ("linear layers", [layer for layer in layers if layer["name"] not in embeddings]),
        ("embedding and head", [layer for layer in layers if layer["name"] in embeddings]),
    ):
        weights = [layer["shape"][0] * layer["shape"][1] for layer in chosen]
        code_bits = sum(w * layer["code_bits"] for w, layer in zip(weights, chosen, strict=True)) / sum(weights)
        parts.append(Part(name, sum(weights), sum(layer["bytes"] for layer in chosen), code_bits))
    rest = unpacked_parameters(checkpoint, architecture)
    parts.append(Part("norms, tables and graph", rest, total - sum(part.nbytes for part in parts), None))
    parts.append(Part("whole model", sum(part.weights for part in parts), total, None))
    return parts
