"""From a checkpoint to a running model: this file reads the way the data flows.

checkpoint -> calibration statistics -> error curves -> bit allocation -> packed linears -> ONNX model
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skim_export.budget import Budget, check_stated
from skim_export.calibration import self_generated, tokens_from_file
from skim_export.checkpoint import Architecture, Checkpoint, architecture_of, default_bits, resolve
from skim_export.files import staged_directory
from skim_export.graph.external_data import save_model
from skim_export.graph.genai_builder import LIBRARY_NAME, PRECISIONS, DecoderBuilder
from skim_export.packed_checkpoint import PackedCheckpoint
from skim_export.quantize import DEFAULT_METHOD, CodebookType
from skim_export.quantize_model import (
    QuantizeOptions,
    allocate,
    gather_statistics,
    method_named,
    quantize_embeddings,
    quantize_linears,
)
from skim_export.report import REPORT_NAME, ExportReport, model_parts, write_report
from skim_export.statistics_store import StatisticsStore
from skim_export.tuning import HELD_OUT
from skim_export.tuning import tune as tune_levels
from skim_runtime.errors import UserError
from skim_runtime.library import library_path
from skim_runtime.model_directory import INTEGER_ACCURACY
from skim_runtime.progress import Progress

__all__ = ["calibration_tokens", "check_calibration", "emit", "export", "tuning_tokens"]

SEQUENCES = 64
SEQUENCE_LENGTH = 256
ACCURACY_LEVELS = range(INTEGER_ACCURACY + 1)
TUNING_SEQUENCES = HELD_OUT + 256  # of the same length


def export(
    model: str,
    output: str | Path,
    *,
    bits: float | None = None,
    effective_bits: float | None = None,
    size: int | None = None,
    method: str = DEFAULT_METHOD,
    head_bits: int | None = 8,
    codebook: CodebookType = "int8",
    accuracy_level: int = INTEGER_ACCURACY,
    ep: str = "cpu",
    calib: str | Path | None = None,
    seed: int = 0,
    tune: bool = False,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Quantize a model and write it as ONNX.

    Everything is prepared in a directory beside the output's and moved into place at the end, model.onnx last.

    Args:
        model: alias of a recipe, Hugging Face id, or directory.
        output: the ONNX file to write; the other files go beside it.
        bits: average width of the codes of the linear layers, 1 to 8; unless another budget is given, what the model's
            recipe says, or else 3.
        effective_bits: the same with everything stored for the linear layers counted in.
        size: bytes of the ONNX file and its data together.
        method: a key of `skim_export.quantize.METHODS`.
        head_bits: width of embedding and output head, 1 to 8; None to let their rows take part in the allocation, and
            the budget be for them, too.
        codebook: type of codebook entries, "int8" or "float16".
        accuracy_level: of the products in the graph, as for `MatMulNBits`: 4 lets a runtime round activations to
            integers, others keep to floats (docs/format.md).
        ep: the execution provider that the graph is for: "cpu", or "cuda", which makes activations and key/value cache
            float16. The weights are the same, and either graph runs on either.
        calib: a text file for calibration; without it the model writes its own text.
        seed: seed of that text.
        tune: calibrate on four times as much text, and fine-tune the quantized model on it. An export that was
            interrupted meanwhile leaves its state beside the output directory, and goes on there when it is repeated.
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
    threads = len(os.sched_getaffinity(0)) if threads is None else threads
    output, calib = Path(output), None if calib is None else Path(calib)
    options = QuantizeOptions(method_named(method), head_bits, codebook)
    check_stated(bits, effective_bits, size)
    check_calibration(calib, seed, threads)
    if accuracy_level not in ACCURACY_LEVELS:
        raise UserError(f"--accuracy-level {accuracy_level}: must be 0 to {ACCURACY_LEVELS[-1]}")
    if ep not in PRECISIONS:
        raise UserError(f"--ep {ep}: must be {' or '.join(PRECISIONS)}")
    _check_output(output, force)
    if bits is effective_bits is size is None:
        bits = default_bits(model)
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
        float_bytes=PRECISIONS[ep][1].bitwidth // 8,
    )
    with staged_directory(output.parent, last=output.name) as stage:
        with tempfile.TemporaryDirectory(prefix=".packed-", dir=stage) as work:
            packed = PackedCheckpoint(Path(work))
            store = StatisticsStore(Path(work))
            if tune:  # before anything that takes long: the text may be too short
                text = tuning_tokens(checkpoint, architecture, calib, seed=seed, threads=threads, progress=progress)
            if options.method.objective is not None:
                if tune:  # there is more text, then
                    tokens = text[HELD_OUT:]
                else:
                    tokens = calibration_tokens(
                        checkpoint, architecture, calib, seed=seed, threads=threads, progress=progress
                    )
                vocabulary = options.head_bits is None
                gather_statistics(
                    checkpoint, architecture, tokens, store, vocabulary=vocabulary, threads=threads, progress=progress
                )
            widths = allocate(checkpoint, architecture, store, options, budget, threads=threads, progress=progress)
            quantize_linears(
                checkpoint, architecture, store, widths, packed, options, threads=threads, progress=progress
            )
            quantize_embeddings(checkpoint, architecture, packed, options, threads=threads, progress=progress)
            tuned = None
            if tune:
                state = tuning_state(output)
                tuned = tune_levels(checkpoint, architecture, packed, text, state, threads=threads, progress=progress)
                checkpoint = checkpoint.replacing(packed.parameters())
            emit(checkpoint, architecture, packed, stage / output.name, accuracy_level, ep, progress)
            layers = [packed.report(name) for name in packed.names()]
        parts = model_parts(architecture, checkpoint, layers, stage / output.name)
        recorded = {
            "model": model,
            "method": method,
            "bits": bits,
            "effective_bits": effective_bits,
            "size": size,
            "head_bits": head_bits,
            "codebook": codebook,
            "accuracy_level": accuracy_level,
            "ep": ep,
            "calib": None if calib is None else calib.name,
            "seed": seed,
            "tuned": None if tuned is None else asdict(tuned),
        }
        write_report(stage, recorded, parts, layers)
    tuning_state(output).unlink(missing_ok=True)
    return ExportReport(output, parts, time.monotonic() - started)


def calibration_tokens(
    checkpoint: Checkpoint,
    architecture: Architecture,
    calib: Path | None,
    sequences: int = SEQUENCES,
    *,
    seed: int,
    threads: int,
    progress: Progress,
) -> npt.NDArray[np.int64]:
    """Calibration tokens, int64 `[sequences, SEQUENCE_LENGTH]`: from a text file, or written by the model itself."""
    if calib is not None:
        return tokens_from_file(checkpoint, calib, sequences, SEQUENCE_LENGTH)
    return self_generated(
        checkpoint, architecture, sequences, SEQUENCE_LENGTH, seed=seed, threads=threads, progress=progress
    )


def tuning_tokens(
    checkpoint: Checkpoint,
    architecture: Architecture,
    calib: Path | None,
    *,
    seed: int,
    threads: int,
    progress: Progress,
) -> npt.NDArray[np.int64]:
    """Tokens to tune on, int64 `[TUNING_SEQUENCES, SEQUENCE_LENGTH]`, from the same source, shuffled."""
    tokens = calibration_tokens(
        checkpoint, architecture, calib, TUNING_SEQUENCES, seed=seed + 1, threads=threads, progress=progress
    )
    return np.random.default_rng(seed).permutation(tokens)


def tuning_state(output: Path) -> Path:
    """The file beside the output directory in which tuning keeps its state."""
    directory = output.parent.resolve()
    return directory.with_name(f"{directory.name}.tuning")


def emit(
    checkpoint: Checkpoint,
    architecture: Architecture,
    packed: PackedCheckpoint,
    output: Path,
    accuracy_level: int,
    ep: str,
    progress: Progress,
) -> None:
    """Write the ONNX model of a packed checkpoint, and beside it the configuration, tokenizer and operator library.

    Raises:
        UserError: the model builder has another version, or the operator library is not built.
    """
    read = lru_cache(maxsize=1)(packed.read)  # the tensors of a layer are asked for one after the other
    builder = DecoderBuilder(checkpoint, architecture, read, output, accuracy_level, ep)
    save_model(builder.build(), output, progress)
    builder.write_configuration()
    shutil.copyfile(library_path(), output.parent / LIBRARY_NAME)


def check_calibration(calib: Path | None, seed: int, threads: int) -> None:
    """Check what calibration is given, before anything that takes long.

    Raises:
        UserError: something given is wrong.
    """
    if threads < 1:
        raise UserError(f"--threads {threads}: must be at least 1")
    if seed < 0:
        raise UserError(f"--seed {seed}: must be at least 0")
    if calib is not None and not calib.is_file():
        raise UserError(f"--calib {calib}: no such file")


def _check_output(output: Path, force: bool) -> None:
    if output.suffix != ".onnx":
        raise UserError(f"--output {output}: must name an .onnx file, such as {output / 'model.onnx'}")
    if output.is_dir():
        raise UserError(f"--output {output}: is a directory; name a file in it")
    others = (output, output.with_name(output.name + ".data"), output.with_name(REPORT_NAME))
    for path in others:
        if path.exists() and not force:
            raise UserError(f"--output: {path} exists; use --force to replace it")
