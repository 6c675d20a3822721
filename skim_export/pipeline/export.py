"""From a checkpoint to a running model: this file reads the way the data flows.

checkpoint -> calibration statistics -> error curves -> bit allocation -> packed linears -> ONNX model
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Unpack

import numpy as np
import numpy.typing as npt

from skim_export.calibration.calibrate_model import (
    gather_statistics,
    spread_statistics,
    warn_of_seldom_experts,
)
from skim_export.calibration.statistics_store import StatisticsStore
from skim_export.checkpoint import Model, default_bits
from skim_export.graph.external_data import save_model
from skim_export.graph.genai_builder import LIBRARY_NAME, DecoderBuilder, check_builder
from skim_export.packed import PackedLinear
from skim_export.packed.checkpoint import PackedCheckpoint
from skim_export.pipeline.check import check
from skim_export.pipeline.job import Job
from skim_export.pipeline.layer_choice import excluding
from skim_export.pipeline.memory import is_checked, within_memory
from skim_export.pipeline.options import ExportKeywords, ExportOptions
from skim_export.pipeline.proof import prove
from skim_export.pipeline.quantize_model import allocate, embedding_tasks, linear_tasks
from skim_export.pipeline.rehearsal import rehearse
from skim_export.pipeline.report import (
    TUNED,
    ExportReport,
    finished,
    model_parts,
    options_of,
    versions,
    write_report,
)
from skim_export.tuning import HELD_OUT, TuneReport
from skim_export.tuning import tune as tune_levels
from skim_export.work.device import device_named, float32_products
from skim_export.work.files import publish, sha256
from skim_export.work.place import check_directory, check_name
from skim_export.work.resources import Resources
from skim_export.work.sealed import is_sealed, write_sealed, write_sealed_array
from skim_export.work.tasks import Executor, SerialExecutor, do_tasks
from skim_export.work.workplace import Workplace, workplace, workplace_of
from skim_runtime.errors import UserError
from skim_runtime.library import library_path
from skim_runtime.progress import Progress
from skim_runtime.verification import REPORT_NAME

__all__ = ["emit", "export", "prepare", "run"]


def export(
    model: str,
    output: str | Path,
    options: ExportOptions | None = None,
    *,
    progress: Progress | None = None,
    **keywords: Unpack[ExportKeywords],
) -> ExportReport:
    """Quantize a model and write it as ONNX.

    What is done is kept in a directory beside the output's, and moved into place at the end, model.onnx last. An export
    that was interrupted goes on there when it is repeated, and ends with the same bytes.

    Args:
        model: alias of a recipe, Hugging Face id, directory, or GGUF file.
        output: the ONNX file to write; the other files go beside it.
        options: what to do; the defaults of all options if it is None.
        progress: told of every step.
        keywords: options by their names, in place of those in `options`.

    Returns:
        What was written, and what each part of the model takes.

    Raises:
        UserError: something given is wrong; nothing was written. Or the disk is full.
    """
    options = replace(options or ExportOptions(), **keywords)
    return run(prepare(model, output, options, progress=progress), progress)


def prepare(
    model: str,
    output: str | Path,
    options: ExportOptions,
    *,
    read: Callable[[Path], object] | None = None,
    progress: Progress | None = None,
    download: bool = True,
) -> Job:
    """Check what an export needs beside its options, and find the model.

    Args:
        model: alias of a recipe, Hugging Face id, directory, or GGUF file.
        output: the ONNX file to write; the other files go beside it.
        options: what to do; without a budget it is what the model's recipe says, or else 3 bits.
        read: what is to read the graph later; raises UserError for what it does not know.
        progress: told of a download.
        download: whether the model of a recipe is downloaded. Otherwise, if it is not here yet, the job has its shapes
            only: it can be estimated, not run.

    Raises:
        UserError: something given is wrong.
    """
    output, device = Path(output), device_named(options.device)
    resources = Resources.of(options.threads, device)
    executor: Executor = SerialExecutor(resources)
    if options.ray is not None:
        from skim_export.work.ray_executor import connect

        executor = connect(options.ray, options.threads, device)
    check_builder()
    if options.with_library:
        library_path()
    if options.bits is options.effective_bits is options.size is None:
        options = replace(options, bits=default_bits(model))
    _check_output(output)
    if options_of(output.parent) != json.loads(json.dumps({"model": model, **options.recorded()})):
        _check_existing(output, options)
    found = Model.open(model, adapter=options.adapter, progress=progress, download=download)
    opened = excluding(found, options.exclude)
    _check_context(opened, options)
    _check_mixtures(opened, options)
    job = Job.of(model, output, options, opened, resources, executor)
    if not opened.only_shapes:
        opened.check_tokenizer()
    prove(opened, read)  # shapes are enough for it
    if not opened.only_shapes:
        rehearse(opened, options)
    return job if options.max_memory is None else within_memory(job, options.max_memory)


def run(job: Job, progress: Progress | None = None) -> ExportReport:
    """Do what was prepared, or what an interruption has left of it; see `export`."""
    started = time.monotonic()
    progress = progress or Progress()
    output, model, options = job.output, job.model, job.options
    if model.only_shapes:
        raise UserError(f"model {job.name}: was not downloaded, and its shapes are not enough for an export")
    digest = model.checkpoint.digest(progress)
    text = None if job.text.file is None else sha256(job.text.file)
    provenance = {"checkpoint": digest, "calibration text": text, "versions": versions(), **job.recorded}
    if not options.force and not options.fresh:
        if (report := finished(output, digest, text, job.recorded)) is not None:
            return report
        _check_existing(output, options)
    model.checkpoint.check_values(progress)
    with float32_products(), workplace(output.parent, provenance, fresh=options.fresh) as work:
        packed = _quantize(job, work, progress)
        read: Callable[[str], PackedLinear] = packed.read
        tuned = None
        if job.effort.tune:
            packed, tuned = _tune(job, packed, work, progress)
            read, model = packed.read, model.replacing(packed.parameters())
        stage = work.empty_subdirectory("stage")
        emit(model, read, stage / output.name, options, progress)
        error = None
        if is_checked(job):
            error = check(model, read, stage, resources=job.resources, progress=progress)
        linears = [packed.report(name) for name in packed.names()]
        parts = model_parts(model, linears, stage / output.name, options.float_bytes)
        recorded = {**job.recorded, TUNED: None if tuned is None else asdict(tuned)}
        write_report(stage, digest, text, recorded, parts, linears)
        work.publish()
        publish(stage, output.parent.resolve(), last=output.name)
    return ExportReport(output, parts, time.monotonic() - started, error=error)


def _quantize(job: Job, work: Workplace, progress: Progress) -> PackedCheckpoint:
    """The packed linears of the model, as far as they are not in the workplace."""
    model, options = job.model, job.quantizing
    packed = PackedCheckpoint(work.subdirectory("packed"))
    store = StatisticsStore(work.subdirectory("statistics"))
    if job.calibrates:
        tokens = _tokens(job, work, progress)[HELD_OUT if job.effort.tune else 0 :]
        gather = partial(gather_statistics, resources=job.resources)
        if not isinstance(job.executor, SerialExecutor):
            gather = partial(spread_statistics, executor=job.executor)
        vocabulary = options.measures_vocabulary(model.architecture)
        gather(model, tokens, store, vocabulary=vocabulary, progress=progress)
        warn_of_seldom_experts(model.architecture, store)
    curves = work.subdirectory("curves")
    widths = allocate(model, store, options, job.budget, curves=curves, executor=job.executor, progress=progress)
    resources = job.executor.resources
    tasks = linear_tasks(model, store, widths, packed, options, resources)
    tasks += embedding_tasks(model, packed, options, resources)
    do_tasks("quantizing", tasks, job.executor, progress)
    return packed


def _tokens(job: Job, work: Workplace, progress: Progress) -> npt.NDArray[np.int64]:
    """Tokens to calibrate on, or to tune on, which are more, int64 `[S, T]`."""
    path = work.directory / "tokens.npy"
    if not is_sealed(path):
        tokens = job.text.tokens(job.model, resources=job.resources, progress=progress)
        write_sealed_array(path, tokens)
    found: npt.NDArray[np.int64] = np.load(path)
    return found


def _tune(
    job: Job, packed: PackedCheckpoint, work: Workplace, progress: Progress
) -> tuple[PackedCheckpoint, TuneReport]:
    """The packed linears after tuning, and what it did."""
    report, tuned = work.directory / "tuned.json", PackedCheckpoint(work.subdirectory("tuned"))
    if is_sealed(report) and all(tuned.is_complete(name) for name in packed.names()):
        return tuned, TuneReport(**json.loads(report.read_text()))
    tuned = packed.copied(work.empty_subdirectory("tuned"))
    result = tune_levels(
        job.model,
        tuned,
        _tokens(job, work, progress),
        work.directory / "tuning",
        resources=job.resources,
        progress=progress,
    )
    write_sealed(report, lambda path: path.write_text(json.dumps(asdict(result))))
    return tuned, result


def emit(
    model: Model,
    weights: Callable[[str], PackedLinear],
    output: Path,
    options: ExportOptions,
    progress: Progress,
) -> None:
    """Write the ONNX model of packed weights, and beside it the configuration, the tokenizer, and what options ask for.

    Args:
        model: what is not packed is read from it.
        weights: reads the packed weights of a unit.
        output: the ONNX file to write.
        options: how to multiply, and for whom.
        progress: told of every tensor.

    Raises:
        UserError: the model builder has another version, or the operator library is not built.
    """
    read = lru_cache(maxsize=1)(weights)  # the tensors of a layer are asked for one after the other
    builder = DecoderBuilder(
        model,
        read,
        output,
        options.accuracy_level,
        options.ep,
        options.activation_type,
        with_library=options.with_library,
        context=options.context,
    )
    save_model(builder.build(), output, progress)
    builder.write_configuration()
    if options.with_library:
        shutil.copyfile(library_path(), output.parent / LIBRARY_NAME)


def _check_output(output: Path) -> None:
    check_name("--output", output, ".data")
    if output.suffix != ".onnx":
        raise UserError(f"--output {output}: must name an .onnx file, such as {output / 'model.onnx'}")
    if output.is_dir():
        raise UserError(f"--output {output}: is a directory; name a file in it")
    check_directory("--output", output.parent)


def _check_mixtures(model: Model, options: ExportOptions) -> None:
    if options.ep != "cpu" and any(linear.of_experts for linear in model.architecture.all_linears):
        raise UserError(f"--ep {options.ep}: mixtures of experts run on the CPU alone so far: leave it out")


def _check_context(model: Model, options: ExportOptions) -> None:
    most = model.checkpoint.config.max_position_embeddings
    if options.context is not None and options.context > most:
        raise UserError(f"--context {options.context}: the model was made for {most} positions at most")


def _check_existing(output: Path, options: ExportOptions) -> None:
    # While an export is being published, what is there is its own.
    if options.force or (workplace_of(output.parent).publishing and not options.fresh):
        return
    for path in (output, output.with_name(output.name + ".data"), output.with_name(REPORT_NAME)):
        if path.exists():
            raise UserError(f"--output: {path} exists; use --force to replace it")
