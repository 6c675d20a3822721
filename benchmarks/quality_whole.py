"""Whole models side by side, embedding and head quantized, too: mixtures of GGUF's k-quants, and exported models.

Mixtures are compared in torch with dequantized weights, exported models as they run, in ONNX Runtime. Bits are those of
all quantized matrices together; a mixture's size counts these and its norms in float32, an exported model's is that of
its two files, graph and rotary tables included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from dense_baselines import DenseLinear
from exportable import sensitivity
from k_quants import k_quantize
from measuring import (
    FullPrecision,
    Job,
    Quantized,
    dense_quantized,
    distances,
    torch_model,
)
from quality import add_common_arguments, announce, calibrate_once, full_precision_row, open_job
from results import AS_DISTRIBUTED, Results, Row, print_table

from skim_export.checkpoint import Model
from skim_export.graph.reader import read_packed
from skim_export.pipeline.budget import unpacked_parameters
from skim_export.work.files import sha256
from skim_runtime import Session
from skim_runtime.errors import UserError
from skim_runtime.measure.child import in_child, peak_megabytes
from skim_runtime.progress import Progress

__all__ = ["MIXTURES", "Mixture", "add_arguments", "run"]

EXPORTED_FILES = ("model.onnx", "model.onnx.data")
IMPORTANCES = ("none", "columns", "fisher")


@dataclass(frozen=True)
class Mixture:
    """A type for each class of tensors.

    Attributes:
        head: type of the output head, and of the embedding if they are tied.
        rest: type of everything that is not named otherwise.
        parts: types by the last part of a module's name.
        early: number or share of the first layers where a part has a better type, and that type.
    """

    head: str
    rest: str
    parts: dict[str, str] = field(default_factory=dict)
    early: dict[str, tuple[int | Fraction, str]] = field(default_factory=dict)

    def of_linear(self, part: str, layer: int, layers: int) -> str:
        """The type of a linear layer, e.g. of "v_proj" in layer 0 of 30."""
        first, better = self.early.get(part, (0, ""))
        count = first if isinstance(first, int) else int(first * layers)
        return better if layer < count else self.parts.get(part, self.rest)


def _q2_k(head: str) -> Mixture:
    return Mixture(head, "q2_k", {"v_proj": "q3_k", "o_proj": "q3_k", "down_proj": "q3_k"})


def _q2_k_s(head: str) -> Mixture:
    return Mixture(head, "q2_k", early={"down_proj": (Fraction(1, 8), "q4_k")})


# The first four are llama.cpp's own, for models with less than four query heads to a key head; the others lie between
# them, so that there is one near any size.
MIXTURES = {
    "Q2_K_S": _q2_k_s("q6_k"),
    "Q2_K": _q2_k("q6_k"),
    "Q3_K_S": Mixture("q6_k", "q3_k"),
    "Q3_K_M": Mixture(
        "q6_k",
        "q3_k",
        {"v_proj": "q4_k", "o_proj": "q4_k", "down_proj": "q4_k"},
        {"v_proj": (2, "q5_k"), "down_proj": (Fraction(1, 16), "q5_k")},
    ),
    "Q2_K_S, head q4_k": _q2_k_s("q4_k"),
    "Q2_K_S, head q5_k": _q2_k_s("q5_k"),
    "Q2_K, head q3_k": _q2_k("q3_k"),
    "Q2_K, head q4_k": _q2_k("q4_k"),
    "Q2_K, head q5_k": _q2_k("q5_k"),
    "Q3_K_S, gate and up q2_k, head q3_k": Mixture("q3_k", "q3_k", {"gate_proj": "q2_k", "up_proj": "q2_k"}),
    "Q3_K_S, gate and up q2_k, head q4_k": Mixture("q4_k", "q3_k", {"gate_proj": "q2_k", "up_proj": "q2_k"}),
    "Q3_K_S, gate q2_k, head q3_k": Mixture("q3_k", "q3_k", {"gate_proj": "q2_k"}),
    "Q3_K_S, head q3_k": Mixture("q3_k", "q3_k"),
    "Q3_K_S, head q4_k": Mixture("q4_k", "q3_k"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser)
    parser.add_argument("--mixtures", nargs="*", default=list(MIXTURES), help=f"default: {'; '.join(MIXTURES)}")
    parser.add_argument(
        "--importance",
        nargs="+",
        choices=IMPORTANCES,
        default=["columns"],
        help="weights of a mixture's squared errors: the squared weights (none, no calibration), the mean Fisher "
        "information of each column (columns, like llama.cpp's importance matrix), or that of each weight (fisher)",
    )
    parser.add_argument("--exported", type=Path, nargs="+", default=[], metavar="DIR", help="directories of exports")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure what is not yet in the JSON file, and print the table."""
    for name in args.mixtures:
        if name not in MIXTURES:
            raise UserError(f"--mixtures {name}: must be of {'; '.join(MIXTURES)}")
    for directory in args.exported:
        for name in EXPORTED_FILES:
            if not (directory / name).is_file():
                raise UserError(f"--exported {directory}: has no {name}")
    wanted = {f"{name} ({importance})": (name, importance) for name in args.mixtures for importance in args.importance}
    # The same directory may hold another export next time.
    exports = {
        f"{directory.name} {sha256(directory / 'model.onnx.data')[:8]}": directory for directory in args.exported
    }
    with tempfile.TemporaryDirectory() as work:
        job, settings = open_job(args, Path(work))
        results = Results(args.json, settings)
        if results.find(AS_DISTRIBUTED, None) is None:
            results.add(in_child(full_precision_row, job))
        missing = {label: value for label, value in wanted.items() if results.find(label, None) is None}
        if any(importance != "none" for _, importance in missing.values()):
            results.calibrated(*in_child(calibrate_once, job, args.calib, False))
        for i, (label, (name, importance)) in enumerate(missing.items()):
            announce(f"{i + 1} of {len(missing)}: {label}")
            results.add(in_child(_measure_mixture, job, label, MIXTURES[name], importance))
        for label, directory in exports.items():
            if results.find(label, None) is None:
                announce(label)
                results.add(in_child(_measure_export, job, label, directory))
    found = [row for label in [*wanted, *exports] if (row := results.find(label, None)) is not None]
    full = results.find(AS_DISTRIBUTED, None)
    assert full is not None  # added above
    print_table([full, *sorted(found, key=lambda row: row.effective_bits or 0)], "whole model")


def _measure_mixture(progress: Progress, job: Job, label: str, mixture: Mixture, importance: str) -> Row:
    model = job.open()
    with tempfile.TemporaryDirectory(dir=job.work) as directory:
        started = time.monotonic()
        quantized = _quantized(model, job, Path(directory), mixture, importance, progress)
        seconds, peak = time.monotonic() - started, peak_megabytes()
        measured = torch_model(model, quantized)
        found = distances(measured, FullPrecision(model, job.work), job, progress)
    megabytes = (quantized.nbytes + 4 * unpacked_parameters(model)) / 1e6
    return Row(label, None, quantized.code_bits, quantized.effective_bits, megabytes, found, seconds, peak)


def _quantized(
    model: Model,
    job: Job,
    directory: Path,
    mixture: Mixture,
    importance: str,
    progress: Progress,
) -> Quantized:
    checkpoint, architecture = model.checkpoint, model.architecture
    blocks = architecture.blocks
    layer_of = {linear.name: (linear, i) for i, block in enumerate(blocks) for linear in block}
    modules = {architecture.embedding: mixture.head if architecture.tied else mixture.rest}
    if not architecture.tied:
        modules[architecture.head] = mixture.head

    def quantize(name: str) -> DenseLinear:
        if name in modules:
            return k_quantize(checkpoint.tensor(f"{name}.weight").numpy(), modules[name])
        linear, layer = layer_of[name]
        fisher = None if importance == "none" else sensitivity(job.work, name)
        parts = []
        for member, rows in linear.places():
            weight = checkpoint.tensor(f"{member.module}.weight", member.rows).numpy()
            kind = mixture.of_linear(member.module.rsplit(".", 1)[-1], layer, len(blocks))
            weights = None if fisher is None else fisher[rows]
            if weights is not None and importance == "columns":
                weights = weights.mean(axis=0, keepdims=True)
            parts.append(k_quantize(weight, kind, weights))
        whole = np.concatenate([part.weight for part in parts])
        code_bits = sum(part.code_bits * part.weight.size for part in parts) / whole.size
        return DenseLinear(whole, code_bits, sum(part.bits for part in parts))

    return dense_quantized([*modules, *layer_of], quantize, directory, progress)


def _measure_export(progress: Progress, job: Job, label: str, directory: Path) -> Row:
    model = job.open()
    packed = read_packed(directory / EXPORTED_FILES[0]).values()
    weights = sum(linear.out_features * linear.in_features for linear in packed)
    code_bits = sum(linear.code_bits * linear.out_features * linear.in_features for linear in packed) / weights
    effective_bits = 8 * sum(linear.nbytes for linear in packed) / weights
    nbytes = sum((directory / name).stat().st_size for name in EXPORTED_FILES)
    session = Session(directory, threads=job.threads)
    found = distances(session, FullPrecision(model, job.work), job, progress)
    return Row(label, None, code_bits, effective_bits, nbytes / 1e6, found)
