"""From a checkpoint to a running model: this file reads the way the data flows.

checkpoint -> calibration statistics -> error curves -> bit allocation -> packed linears -> ONNX model
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from skim_export.calibration import self_generated, tokens_from_file
from skim_export.calibration.calibrate_model import gather_statistics, spread_statistics
from skim_export.calibration.statistics_store import StatisticsStore
from skim_export.checkpoint import Architecture, Checkpoint, architecture_of, default_bits, resolve
from skim_export.graph.external_data import save_model
from skim_export.graph.genai_builder import LIBRARY_NAME, PRECISIONS, DecoderBuilder, check_builder
from skim_export.packed import PackedLinear
from skim_export.packed.checkpoint import PackedCheckpoint
from skim_export.pipeline.budget import Budget, check_stated
from skim_export.pipeline.effort import DEFAULT_EFFORT, effort_named
from skim_export.pipeline.job import Job
from skim_export.pipeline.memory import within_memory
from skim_export.pipeline.quantize_linear import QuantizeOptions
from skim_export.pipeline.quantize_model import allocate, embedding_tasks, linear_tasks
from skim_export.pipeline.report import REPORT_NAME, ExportReport, model_parts, versions, write_report
from skim_export.quantize import CodebookType
from skim_export.tuning import HELD_OUT, TuneReport
from skim_export.tuning import tune as tune_levels
from skim_export.work.device import device_named, float32_products
from skim_export.work.files import publish, sha256
from skim_export.work.resources import Resources
from skim_export.work.sealed import is_sealed, write_sealed, write_sealed_array
from skim_export.work.tasks import Executor, SerialExecutor, do_tasks
from skim_export.work.workplace import Workplace, workplace, workplace_of
from skim_runtime.errors import UserError
from skim_runtime.library import library_path
from skim_runtime.model_directory import INTEGER_ACCURACY
from skim_runtime.progress import Progress

if TYPE_CHECKING:
    import torch

__all__ = ["calibration_tokens", "check_calibration", "emit", "export", "prepare", "run", "tuning_tokens"]

SEQUENCES = 64
SEQUENCE_LENGTH = 256
ACCURACY_LEVELS = range(INTEGER_ACCURACY + 1)
TUNING_SEQUENCES = HELD_OUT + 256  # of the same length


def export(model: str, output: str | Path, *, progress: Progress | None = None, **options: Any) -> ExportReport:
    """Quantize a model and write it as ONNX.

    What is done is kept in a directory beside the output's, and moved into place at the end, model.onnx last. An export
    that was interrupted goes on there when it is repeated, and ends with the same bytes.

    Args:
        model: alias of a recipe, Hugging Face id, or directory.
        output: the ONNX file to write; the other files go beside it.
        progress: told of every step.
        options: of `prepare`.

    Returns:
        What was written, and what each part of the model takes.

    Raises:
        UserError: something given is wrong; nothing was written. Or the disk is full.
    """
    return run(prepare(model, output, progress=progress, **options), progress)


def prepare(
    model: str,
    output: str | Path,
    *,
    bits: float | None = None,
    effective_bits: float | None = None,
    size: int | None = None,
    effort: str = DEFAULT_EFFORT,
    method: str | None = None,
    head_bits: int | None = 8,
    codebook: CodebookType = "int8",
    accuracy_level: int = INTEGER_ACCURACY,
    ep: str = "cpu",
    calib: str | Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    max_memory: int | None = None,
    ray: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Job:
    """Check all that an export is given, and find the model.

    Args:
        model: alias of a recipe, Hugging Face id, or directory.
        output: the ONNX file to write; the other files go beside it.
        bits: average width of the codes of the linear layers, 1 to 8; unless another budget is given, what the model's
            recipe says, or else 3.
        effective_bits: the same with everything stored for the linear layers counted in.
        size: bytes of the ONNX file and its data together.
        effort: a key of `skim_export.pipeline.effort.EFFORTS`: what is learnt of the model beside its weights.
        method: a key of `skim_export.quantize.METHODS`, in place of that of the effort.
        head_bits: width of embedding and output head, 1 to 8; None to let their rows take part in the allocation, and
            the budget be for them, too.
        codebook: type of codebook entries, "int8" or "float16".
        accuracy_level: of the products in the graph, as for `MatMulNBits`: 4 lets a runtime round activations to
            integers, others keep to floats (docs/format.md).
        ep: the execution provider that the graph is for: "cpu", or "cuda", which makes activations and key/value cache
            float16. The weights are the same, and either graph runs on either.
        calib: a text file for calibration; without it the model writes its own text.
        seed: seed of that text.
        threads: threads to use, all by default; the result does not depend on it.
        device: where to calibrate and quantize: "cpu", "cuda" or "cuda:N". Levels and codes differ a little between
            them. Tuning stays on the CPU.
        max_memory: bytes of memory to use at most; the result on the CPU does not depend on it.
        ray: address of a Ray cluster, whose workers then quantize the layers: HOST:PORT, or "auto". The result does not
            depend on it. `threads` and `max_memory` are of every task there, by default all threads of the smallest
            worker.
        force: replace an output that exists.
        progress: told of a download.

    Raises:
        UserError: something given is wrong.
    """
    resources = Resources(len(os.sched_getaffinity(0)) if threads is None else threads, device=device_named(device))
    output, calib = Path(output), None if calib is None else Path(calib)
    chosen = effort_named(effort, method)
    options = QuantizeOptions(chosen.method, head_bits, codebook)
    check_stated(bits, effective_bits, size)
    check_calibration(calib, seed, resources.threads)
    executor: Executor = SerialExecutor(resources)
    if ray is not None:
        from skim_export.work.ray_executor import connect

        executor = connect(ray, threads, resources.device)
    if accuracy_level not in ACCURACY_LEVELS:
        raise UserError(f"--accuracy-level {accuracy_level}: must be 0 to {ACCURACY_LEVELS[-1]}")
    if ep not in PRECISIONS:
        raise UserError(f"--ep {ep}: must be {' or '.join(PRECISIONS)}")
    _check_output(output, force)
    check_builder()
    library_path()
    if bits is effective_bits is size is None:
        bits = default_bits(model)
    checkpoint = Checkpoint(resolve(model, progress=progress or Progress()))
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
    recorded = {
        "model": model,
        "effort": effort,
        "method": chosen.name,
        "bits": bits,
        "effective_bits": effective_bits,
        "size": size,
        "head_bits": head_bits,
        "codebook": codebook,
        "accuracy_level": accuracy_level,
        "ep": ep,
        "device": device,
        "calib": None if calib is None else calib.name,
        "seed": seed,
    }
    job = Job(
        checkpoint=checkpoint,
        architecture=architecture,
        output=output,
        options=options,
        budget=budget,
        effort=chosen,
        calib=calib,
        seed=seed,
        text=(TUNING_SEQUENCES if chosen.tune else SEQUENCES, SEQUENCE_LENGTH),
        accuracy_level=accuracy_level,
        ep=ep,
        recorded=recorded,
        resources=resources,
        executor=executor,
    )
    return job if max_memory is None else within_memory(job, max_memory)


def run(job: Job, progress: Progress | None = None) -> ExportReport:
    """Do what was prepared, or what an interruption has left of it; see `export`."""
    started = time.monotonic()
    progress = progress or Progress()
    output, checkpoint = job.output, job.checkpoint
    digest = checkpoint.digest(progress)
    provenance = {
        "checkpoint": digest,
        "calibration text": None if job.calib is None else sha256(job.calib),
        "versions": versions(),
        **job.recorded,
    }
    with float32_products(), workplace(output.parent, provenance) as work:
        packed = _quantize(job, work, progress)
        read: Callable[[str], PackedLinear] = packed.read
        tuned = None
        if job.effort.tune:
            packed, tuned = _tune(job, packed, work, progress)
            read, checkpoint = packed.read, checkpoint.replacing(packed.parameters())
        stage = work.empty_subdirectory("stage")
        emit(checkpoint, job.architecture, read, stage / output.name, job.accuracy_level, job.ep, progress)
        layers = [packed.report(name) for name in packed.names()]
        parts = model_parts(job.architecture, checkpoint, layers, stage / output.name)
        recorded = {**job.recorded, "tuned": None if tuned is None else asdict(tuned)}
        write_report(stage, digest, recorded, parts, layers)
        work.publish()
        publish(stage, output.parent.resolve(), last=output.name)
    return ExportReport(output, parts, time.monotonic() - started)


def _quantize(job: Job, work: Workplace, progress: Progress) -> PackedCheckpoint:
    """The packed layers of the model, as far as they are not in the workplace."""
    checkpoint, architecture, options = job.checkpoint, job.architecture, job.options
    packed = PackedCheckpoint(work.subdirectory("packed"))
    store = StatisticsStore(work.subdirectory("statistics"))
    if job.calibrates:
        tokens = _tokens(job, work, progress)[HELD_OUT if job.effort.tune else 0 :]
        gather = partial(gather_statistics, threads=job.resources.workers, device=job.resources.device)
        if not isinstance(job.executor, SerialExecutor):
            gather = partial(spread_statistics, executor=job.executor)
        gather(checkpoint, architecture, tokens, store, vocabulary=options.head_bits is None, progress=progress)
    curves = work.subdirectory("curves")
    widths = allocate(
        checkpoint, architecture, store, options, job.budget, curves=curves, executor=job.executor, progress=progress
    )
    resources = job.executor.resources
    tasks = linear_tasks(checkpoint, architecture, store, widths, packed, options, resources)
    tasks += embedding_tasks(checkpoint, architecture, packed, options, resources)
    do_tasks("quantizing", tasks, job.executor, progress)
    return packed


def _tokens(job: Job, work: Workplace, progress: Progress) -> npt.NDArray[np.int64]:
    """Tokens to calibrate on, or to tune on, which are more, int64 `[S, T]`."""
    path = work.directory / "tokens.npy"
    if not is_sealed(path):
        make = tuning_tokens if job.effort.tune else partial(calibration_tokens, sequences=job.text[0])
        tokens = make(
            job.checkpoint,
            job.architecture,
            job.calib,
            seed=job.seed,
            threads=job.resources.workers,
            device=job.resources.device,
            progress=progress,
        )
        write_sealed_array(path, tokens)
    found: npt.NDArray[np.int64] = np.load(path)
    return found


def _tune(
    job: Job, packed: PackedCheckpoint, work: Workplace, progress: Progress
) -> tuple[PackedCheckpoint, TuneReport]:
    """The packed layers after tuning, and what it did."""
    report, tuned = work.directory / "tuned.json", PackedCheckpoint(work.subdirectory("tuned"))
    if is_sealed(report) and all(tuned.is_complete(name) for name in packed.names()):
        return tuned, TuneReport(**json.loads(report.read_text()))
    tuned = packed.copied(work.empty_subdirectory("tuned"))
    result = tune_levels(
        job.checkpoint,
        job.architecture,
        tuned,
        _tokens(job, work, progress),
        work.directory / "tuning",
        threads=job.resources.threads,
        progress=progress,
    )
    write_sealed(report, lambda path: path.write_text(json.dumps(asdict(result))))
    return tuned, result


def calibration_tokens(
    checkpoint: Checkpoint,
    architecture: Architecture,
    calib: Path | None,
    sequences: int = SEQUENCES,
    *,
    seed: int,
    threads: int,
    device: torch.device | None = None,
    progress: Progress,
) -> npt.NDArray[np.int64]:
    """Calibration tokens, int64 `[sequences, SEQUENCE_LENGTH]`: from a text file, or written by the model itself."""
    if calib is not None:
        return tokens_from_file(checkpoint, calib, sequences, SEQUENCE_LENGTH)
    return self_generated(
        checkpoint,
        architecture,
        sequences,
        SEQUENCE_LENGTH,
        seed=seed,
        threads=threads,
        device=device,
        progress=progress,
    )


def tuning_tokens(
    checkpoint: Checkpoint,
    architecture: Architecture,
    calib: Path | None,
    *,
    seed: int,
    threads: int,
    device: torch.device | None = None,
    progress: Progress,
) -> npt.NDArray[np.int64]:
    """Tokens to tune on, int64 `[TUNING_SEQUENCES, SEQUENCE_LENGTH]`, from the same source, shuffled."""
    tokens = calibration_tokens(
        checkpoint,
        architecture,
        calib,
        TUNING_SEQUENCES,
        seed=seed + 1,
        threads=threads,
        device=device,
        progress=progress,
    )
    return np.random.default_rng(seed).permutation(tokens)


def emit(
    checkpoint: Checkpoint,
    architecture: Architecture,
    weights: Callable[[str], PackedLinear],
    output: Path,
    accuracy_level: int,
    ep: str,
    progress: Progress,
) -> None:
    """Write the ONNX model of packed weights, and beside it the configuration, tokenizer and operator library.

    Args:
        checkpoint: what is not packed is read from it.
        architecture: of the model.
        weights: reads the packed weights of a unit.
        output: the ONNX file to write.
        accuracy_level: of the products.
        ep: the execution provider that the graph is for.
        progress: told of every tensor.

    Raises:
        UserError: the model builder has another version, or the operator library is not built.
    """
    read = lru_cache(maxsize=1)(weights)  # the tensors of a layer are asked for one after the other
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
    if force or workplace_of(output.parent).publishing:  # they are of the same export, which was interrupted
        return
    for path in others:
        if path.exists():
            raise UserError(f"--output: {path} exists; use --force to replace it")
