"""Perplexity of quantization methods side by side: linear layers quantized, embedding and head in full precision.

All methods see the same calibration tokens and the same statistics; perplexity is measured in torch on the dequantized
weights. The gap is the perplexity minus that of the full-precision model.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from skim_export.budget import Budget
from skim_export.checkpoint import Architecture, Checkpoint, architecture_of, resolve
from skim_export.modules import dequantized_model
from skim_export.packed_checkpoint import PackedCheckpoint
from skim_export.pipeline import calibration_tokens
from skim_export.quantize_model import QuantizeOptions, allocate, gather_statistics, quantize_linears
from skim_export.statistics_store import StatisticsStore
from skim_runtime.evaluation import compare
from skim_runtime.progress import Progress
from skim_runtime.progress_bar import ProgressBar
from skim_runtime.torch_reference import TorchReference


@dataclass(frozen=True)
class Row:
    """One line of the table; `perplexity` by text."""

    method: str
    code_bits: float | None
    effective_bits: float | None
    perplexity: dict[str, float]
    seconds: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="texts to measure on")
    parser.add_argument("--calib", type=Path, help="calibration text; without it the model writes its own")
    parser.add_argument("--methods", nargs="+", default=["rtn", "squeezellm", "skim"])
    parser.add_argument("--bits", type=float, nargs="+", default=[3.0])
    parser.add_argument("--codebook", default="int8")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=8192, help="of each text")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, and write the JSON file."""
    with ProgressBar() as progress, tempfile.TemporaryDirectory() as work:
        checkpoint = Checkpoint(resolve(args.model, progress=progress))
        architecture = architecture_of(checkpoint)
        texts = {path.name: _tokens(checkpoint, path, args.tokens) for path in args.text}
        full = dequantized_model(checkpoint, architecture, lambda name: None)
        rows = [Row("full precision", None, None, _perplexities(full, texts, args.context), None)]
        common = {"threads": args.threads, "progress": progress}
        store = StatisticsStore(Path(work))
        started = time.monotonic()
        tokens = calibration_tokens(checkpoint, architecture, args.calib, seed=0, **common)
        gather_statistics(checkpoint, architecture, tokens, store, **common)
        calibration_seconds = time.monotonic() - started
        for bits in args.bits:
            for method in args.methods:
                options = QuantizeOptions(method, codebook=args.codebook)
                with tempfile.TemporaryDirectory() as directory:
                    packed = PackedCheckpoint(Path(directory))
                    started = time.monotonic()
                    widths = allocate(checkpoint, architecture, store, options, Budget(bits), **common)
                    quantize_linears(checkpoint, architecture, store, widths, packed, options, **common)
                    seconds = time.monotonic() - started
                    rows.append(_row(method, checkpoint, architecture, packed, texts, args.context, seconds))
    _print(rows, calibration_seconds)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def _tokens(checkpoint: Checkpoint, path: Path, count: int) -> npt.NDArray[np.int64]:
    return np.array(checkpoint.tokenizer.encode(path.read_text("utf-8"), add_special_tokens=False)[:count])


def _row(
    method: str,
    checkpoint: Checkpoint,
    architecture: Architecture,
    packed: PackedCheckpoint,
    texts: dict[str, npt.NDArray[np.int64]],
    context: int,
    seconds: float,
) -> Row:
    reports = [packed.report(linear.name) for linear in architecture.linears]
    weights = np.array([linear.out_features * linear.in_features for linear in architecture.linears])
    code_bits = float(np.average([report["code_bits"] for report in reports], weights=weights))
    effective = float(8 * sum(report["bytes"] for report in reports) / weights.sum())
    model = dequantized_model(checkpoint, architecture, lambda name: packed.read(name) if name in packed else None)
    return Row(method, code_bits, effective, _perplexities(model, texts, context), seconds)


def _perplexities(model: Any, texts: dict[str, npt.NDArray[np.int64]], context: int) -> dict[str, float]:
    quantized = TorchReference(model)
    return {name: compare(quantized, ids, None, context, Progress()).perplexity for name, ids in texts.items()}


def _print(rows: list[Row], calibration_seconds: float) -> None:
    table = Table(title=f"calibration: {calibration_seconds:.0f} s", box=None)
    table.add_column("method")
    texts = list(rows[0].perplexity)
    for column in (
        "code bits",
        "effective bits",
        *(f"{text}: {what}" for text in texts for what in ("ppl", "gap")),
        "s",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [f"{row.perplexity[t] - d:.3f}" for t in texts for d in (0.0, rows[0].perplexity[t])]
        bits = ["" if value is None else f"{value:.3f}" for value in (row.code_bits, row.effective_bits)]
        table.add_row(row.method, *bits, *cells, "" if row.seconds is None else f"{row.seconds:.0f}")
    Console(width=160).print(table)
