"""Quantization methods side by side: linear layers quantized, embedding and head in full precision.

All methods see the same calibration tokens and the same statistics. Models are compared in torch with dequantized
weights; the gap is the perplexity minus that of the full-precision model.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
from block_formats import BLOCK_METHODS
from dense_baselines import DenseLinear, skim_sparse, squeezellm_sparse
from evaluated import ENOUGH_TOKENS, texts_and_warnings
from exportable import CHANGES, TUNING_STATISTICS, TUNING_TEXT, parse_method, quantize_packed, sensitivity
from measuring import (
    FullPrecision,
    Job,
    Quantized,
    dense_quantized,
    distances,
    read_tokens,
    torch_model,
)
from published import ShowPublished
from results import AS_DISTRIBUTED, Results, Row, check_plot, plot, print_table

from skim_export.calibration.calibrate_model import gather_statistics
from skim_export.calibration.statistics_store import StatisticsStore
from skim_export.checkpoint import Checkpoint, Model, linear_weight, resolve
from skim_export.packed import CodebookType
from skim_export.packed.checkpoint import PackedCheckpoint
from skim_export.pipeline.budget import Budget
from skim_export.pipeline.calibration_text import CalibrationText
from skim_export.pipeline.quantize_linear import QuantizeOptions
from skim_export.pipeline.quantize_model import allocate
from skim_export.quantize import METHODS, even_bits
from skim_export.tuning import HELD_OUT
from skim_export.work.files import write_json
from skim_export.work.resources import Resources
from skim_export.work.tasks import SerialExecutor
from skim_runtime.errors import UserError
from skim_runtime.measure.child import in_child, peak_megabytes
from skim_runtime.progress import Progress
from skim_runtime.progress_bar import ProgressBar
from skim_runtime.text_file import text_facts

__all__ = [
    "add_arguments",
    "add_common_arguments",
    "announce",
    "calibrate_once",
    "full_precision_row",
    "open_job",
    "run",
]

SHOWN = ["rtn", "rtn-g64", "mxfp4", "squeezellm", "squeezellm-sparse", "gptq", "skim", "skim+"]
SHOWN_BITS = [2.0, 2.25, 2.5, 3.0, 3.25, 3.5, 4.0]
DENSE = (*BLOCK_METHODS, "squeezellm-sparse", "skim+-sparse")  # the others are exportable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=SHOWN,
        help=f"of {' '.join((*METHODS, *DENSE))}; those of the exporter may have other parts, such as "
        f"skim+:tune or skim+:even,scaled (parts: {', '.join(CHANGES)}, tune)",
    )
    parser.add_argument("--bits", type=float, nargs="+", default=SHOWN_BITS, help="average widths of the codes")
    parser.add_argument("--codebook", choices=get_args(CodebookType), default="int8")
    parser.add_argument("--ratio-to", metavar="METHOD", help="show gaps divided by this method's at the same bits")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw perplexity over effective bits")
    parser.add_argument("--published", action=ShowPublished, nargs=0, help="show published figures and leave")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep what calibration finds here, for the next table")
    parser.set_defaults(run=run)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that both tables have."""
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="texts to measure on")
    parser.add_argument("--calib", type=Path, help="calibration text; without it the model writes its own")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=ENOUGH_TOKENS, help="of each text (%(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the rows, one by one; those that are there are not repeated"
    )


def run(args: argparse.Namespace) -> None:
    """Measure what is not yet in the JSON file, print the table, and draw the plot."""
    wanted = _wanted(args.methods, args.bits)
    if args.ratio_to is not None and args.ratio_to not in args.methods:
        raise UserError(f"--ratio-to {args.ratio_to}: must be one of --methods {' '.join(args.methods)}")
    if args.plot:
        check_plot(args.plot)
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        job, settings = open_job(args, work)
        tuning = {"tuning tokens": list(CalibrationText(args.calib, 0, tuning=True).shape)}
        of_results = settings | (tuning if any(_is_tuned(method) for method in args.methods) else {})
        results = Results(args.json, {**of_results, "codebook": args.codebook})
        missing = [key for key in wanted if results.find(*key) is None]
        if results.find(AS_DISTRIBUTED, None) is None:
            results.add(in_child(full_precision_row, job))
        if any(_needs_statistics(method) for method, _ in missing):
            tuned = any(_is_tuned(method) for method, _ in missing)
            results.calibrated(*_calibration(job, settings | (tuning if tuned else {}), args.calib, tuned))
        for i, (method, bits) in enumerate(missing):
            announce(f"{i + 1} of {len(missing)}: {method}" + ("" if bits is None else f" at {bits:g} bits"))
            results.add(in_child(_measure, job, method, bits, args.codebook))
    rows = [row for key in [(AS_DISTRIBUTED, None), *wanted] if (row := results.find(*key)) is not None]
    title = f"calibration: {results.calibration['seconds']:.0f} s" if results.calibration else "no calibration"
    print_table(rows, title, args.ratio_to)
    if args.plot:
        plot(rows, args.plot)


def announce(row: str) -> None:
    """Say on stderr which row comes next."""
    sys.stderr.write(f"row {row}\n")


def open_job(args: argparse.Namespace, work: Path) -> tuple[Job, dict[str, Any]]:
    """What rows are measured on, and the settings that make rows comparable."""
    with ProgressBar() as progress:
        model = resolve(args.model, progress=progress)
    texts = read_tokens(Checkpoint(model), args.text, args.tokens, args.context)
    if args.calib is not None and not args.calib.is_file():
        raise UserError(f"--calib {args.calib}: there is no such file")
    settings = {
        "model": args.model,
        **texts_and_warnings(args.text, args.tokens),
        "calibration text": None if args.calib is None else text_facts(args.calib),
        "calibration tokens": list(CalibrationText(args.calib, 0).shape),
        "tokens": args.tokens,
        "context": args.context,
    }
    return Job(model, texts, args.context, work, args.threads), settings


def full_precision_row(progress: Progress, job: Job) -> Row:
    """The row of the full-precision model; its outputs stay in the work directory."""
    reference = FullPrecision(job.open(), job.work)
    return Row(AS_DISTRIBUTED, None, None, None, None, distances(reference, reference, job, progress))


def _calibration(job: Job, settings: dict[str, Any], calib: Path | None, tuned: bool) -> tuple[float, float]:
    """What calibration took: now, or when the work directory was filled."""
    marker = job.work / "calibration.json"
    if marker.is_file():
        kept = json.loads(marker.read_text())
        if kept["settings"] == {**kept["settings"], **settings}:  # there may be a text to tune on that is not needed
            return kept["seconds"], kept["peak megabytes"]
    marker.unlink(missing_ok=True)
    seconds, peak = in_child(calibrate_once, job, calib, tuned)
    write_json(marker, {"settings": settings, "seconds": seconds, "peak megabytes": peak})
    return seconds, peak


def calibrate_once(progress: Progress, job: Job, calib: Path | None, tuned: bool) -> tuple[float, float]:
    """Write calibration statistics, and text to tune on, to the work directory; seconds and peak memory of it."""
    started = time.monotonic()
    model = job.open()
    resources = Resources(job.threads)
    tokens = CalibrationText(calib, 0).tokens(model, resources=resources, progress=progress)
    store = StatisticsStore(job.work)
    gather_statistics(model, tokens, store, resources=resources, progress=progress)
    if tuned:
        text = CalibrationText(calib, 0, tuning=True).tokens(model, resources=resources, progress=progress)
        np.save(job.work / TUNING_TEXT, text)
        store = StatisticsStore(job.work / TUNING_STATISTICS)
        store.directory.mkdir(exist_ok=True)
        gather_statistics(model, text[HELD_OUT:], store, resources=resources, progress=progress)
    return time.monotonic() - started, peak_megabytes()


def _wanted(methods: list[str], bits: list[float]) -> list[tuple[str, float | None]]:
    """Methods and averages in the order of the table."""
    for method in methods:
        if method not in DENSE:
            parse_method(method)
    for average in bits:
        if not 1 <= average <= 8:
            raise UserError(f"--bits {average:g}: must be from 1 to 8")
    one_width = [method for method in methods if method in BLOCK_METHODS and BLOCK_METHODS[method].one_width]
    wanted: list[tuple[str, float | None]] = [(method, None) for method in one_width]
    for average in bits:
        for method in methods:
            if method in one_width or (method in BLOCK_METHODS and not average.is_integer()):
                continue
            wanted.append((method, average))
    return list(dict.fromkeys(wanted))


def _is_tuned(method: str) -> bool:
    return method not in DENSE and parse_method(method)[1]


def _needs_statistics(method: str) -> bool:
    if method in BLOCK_METHODS:
        return BLOCK_METHODS[method].calibrated
    return method in DENSE or parse_method(method)[0].needs_statistics


def _measure(progress: Progress, job: Job, method: str, bits: float | None, codebook: CodebookType) -> Row:
    model = job.open()
    with tempfile.TemporaryDirectory(dir=job.work) as directory:
        started = time.monotonic()
        quantize = _quantized_dense if method in DENSE else _quantized_packed
        quantized = quantize(model, job, Path(directory), method, bits, codebook, progress)
        seconds, peak = time.monotonic() - started, peak_megabytes()
        measured = torch_model(model.replacing(quantized.parameters), quantized)
        found = distances(measured, FullPrecision(model, job.work), job, progress)
    sizes = (quantized.code_bits, quantized.effective_bits, quantized.nbytes / 1e6)
    return Row(method, bits, *sizes, found, seconds, peak)


def _quantized_packed(
    model: Model,
    job: Job,
    directory: Path,
    method: str,
    bits: float | None,
    codebook: CodebookType,
    progress: Progress,
) -> Quantized:
    assert bits is not None  # see _wanted
    packed = PackedCheckpoint(directory)
    quantize_packed(model, job, packed, method, bits, codebook, progress)
    reports = [packed.report(linear.name) for linear in model.architecture.linears]
    weights = np.array([linear.out_features * linear.in_features for linear in model.architecture.linears])
    code_bits = float(np.average([report["code_bits"] for report in reports], weights=weights))
    nbytes = sum(report["bytes"] for report in reports)
    return Quantized(
        lambda name: packed.read(name) if name in packed else None,
        code_bits,
        int(weights.sum()),
        nbytes,
        packed.parameters(),
    )


def _quantized_dense(
    model: Model,
    job: Job,
    directory: Path,
    method: str,
    bits: float | None,
    codebook: CodebookType,
    progress: Progress,
) -> Quantized:
    linears = {linear.name: linear for linear in model.architecture.linears}
    store, resources = StatisticsStore(job.work), Resources(job.threads)
    if method == "skim+-sparse":
        assert bits is not None  # see _wanted
        options, budget = QuantizeOptions(codebook=codebook), Budget(bits)
        executor = SerialExecutor(resources)
        widths = allocate(model, store, options, budget, curves=directory, executor=executor, progress=progress)

    def quantize(name: str) -> DenseLinear:
        weight = linear_weight(model.checkpoint, linears[name])
        if method in BLOCK_METHODS:
            return BLOCK_METHODS[method].quantize(weight, bits, store, name)
        assert bits is not None  # see _wanted
        fisher = sensitivity(job.work, name)
        if method == "squeezellm-sparse":
            even = even_bits(len(weight), bits)
            return squeezellm_sparse(weight, fisher, even, codebook=codebook, resources=resources)
        correlation = store.correlation(name)
        return skim_sparse(weight, fisher, correlation, widths[name], codebook=codebook, resources=resources)

    return dense_quantized(list(linears), quantize, directory, progress)
