"""What `skim-bench` does with `--target` or `--bundle`: kernels and bundles of a target, measured as tables."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skim_export.measure.running.options import add_machine_arguments, cold_bytes, open_machine
from skim_runtime.command import run_command
from skim_runtime.errors import UserError

if TYPE_CHECKING:
    from skim_export.bundle.target import CpuTarget
    from skim_export.packed import RowClass

__all__ = ["main"]

BITS = ["1", "2", "3", "4", "5", "6", "7", "8", "8-affine"]
SHAPES = ["4096x4096", "14336x4096", "4096x14336", "576x576", "1536x576"]
EMULATED_SHAPES = ["64x4096"]
BESIDE = (
    "Beside them stand the operators in onnxruntime with the same weights and arithmetic, and numpy's product with the "
    "weights as float32; the environment variable SKIM_KERNEL says which kernels the operators use."
)
EPILOG = (
    "Kernels are timed on this machine if its CPU runs the target, or on the board that --rpc names. Otherwise an "
    "emulator runs them: then they are only checked, and their instructions counted. " + BESIDE
)


def main(argv: Sequence[str] | None = None) -> int:
    """`skim-bench` with --target or --bundle: measure kernels or a bundle; returns the exit code.

    It is the extension `bench` of the runtime, whose command this is.
    """
    args = _parser().parse_args(argv)
    # Before numpy is imported, which reads it only once.
    os.environ["OPENBLAS_NUM_THREADS"] = str(args.threads)
    return run_command("skim-bench", lambda: _run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skim-bench", description="Measure the kernels of a target, or a model's bundle.", epilog=EPILOG
    )
    parser.add_argument("--target", help="a name, such as rpi5 or x86-avx2, or a .toml file like theirs")
    parser.add_argument("--threads", type=int, default=1, metavar="T", help="default: 1")
    parser.add_argument("--rounds", type=int, default=5, help="medians are over so many (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a JSON file")
    kernels = parser.add_argument_group("kernels")
    kernels.add_argument("--shape", nargs="+", metavar="NxK", help=f"default: {' '.join(SHAPES)}")
    kernels.add_argument("--bits", nargs="+", default=BITS, metavar="B", help=f"default: {' '.join(BITS)}")
    kernels.add_argument(
        "--tokens", nargs="+", type=int, default=[1, 4, 8, 128], metavar="M", help="default: 1 4 8 128"
    )
    kernels.add_argument("--seconds", type=float, default=0.05, help="of one contender in a round (%(default)s)")
    add_machine_arguments(kernels)
    models = parser.add_argument_group("models, instead of kernels")
    models.add_argument("--bundle", type=Path, metavar="DIR", help="a bundle with a compiled program for this machine")
    models.add_argument(
        "--model", type=Path, metavar="DIR", help="what skim-export wrote: run by onnxruntime beside its bundle"
    )
    models.add_argument("--prompt", type=int, default=128, metavar="N", help="tokens of the prompt (%(default)s)")
    models.add_argument("--new", type=int, default=64, metavar="N", help="tokens to generate (%(default)s)")
    return parser


def _run(args: argparse.Namespace) -> None:
    from skim_runtime.measure.options import at_least
    from skim_runtime.measure.report import report_head, save_json

    for option in ("threads", "rounds", "prompt"):
        at_least(f"--{option}", 1, getattr(args, option))
    at_least("--tokens", 1, *args.tokens)
    at_least("--new", 2, args.new)
    if not args.seconds > 0:
        raise UserError(f"--seconds {args.seconds}: must be positive")
    report: dict[str, Any] = {**report_head(), "threads": args.threads, "rounds": args.rounds}
    save_json(args.json, report)
    report |= _models(args) if args.bundle or args.model else _kernels(args)
    save_json(args.json, report)


def _kernels(args: argparse.Namespace) -> dict[str, Any]:
    from skim_export.bundle.build import check_target
    from skim_export.bundle.target import load_cpu_target
    from skim_export.measure.running.layers import parse_classes
    from skim_runtime.measure.options import parse_shape

    check_target(args.target)
    target = load_cpu_target(args.target)
    emulated = not args.rpc and target.missing_here() is not None
    names = args.shape or (EMULATED_SHAPES if emulated else SHAPES)
    shapes = [parse_shape(shape, 32, "--shape") for shape in dict.fromkeys(names)]
    classes, tokens = parse_classes(args.bits), list(dict.fromkeys(args.tokens))
    measure = _emulated if emulated else _timed
    return {"target": target.name, **measure(args, target, shapes, classes, tokens)}


def _timed(
    args: argparse.Namespace,
    target: CpuTarget,
    shapes: Sequence[tuple[int, int]],
    classes: Sequence[RowClass],
    tokens: Sequence[int],
) -> dict[str, Any]:
    from skim_export.measure.tables import print_not_measured, print_rows
    from skim_runtime.library import kernel_name
    from skim_runtime.progress_bar import ProgressBar

    cold = cold_bytes(args)
    machine = open_machine(args, target, args.threads)
    operators = None if args.rpc else kernel_name()

    from skim_export.measure.kernels import Settings, measure_kernels

    settings = Settings(args.rounds, args.seconds, cold, beside=not args.rpc)
    rows: list[Any] = []
    for shape in shapes:
        with ProgressBar() as progress:
            found = list(measure_kernels(machine, shape, classes, tokens, settings, progress))
        rows += found
        print_rows(found, f"target {target.name}" + (f", operators {operators}" if operators else ", by RPC"))
    not_measured = ["onnxruntime and numpy: they are only measured on this machine"] if args.rpc else []
    print_not_measured(not_measured)
    return {
        "where": f"{args.rpc_key or target.name}, by RPC" if args.rpc else "here",
        "operators": operators,
        "cold_bytes": cold,
        "rows": [asdict(row) for row in rows],
        "not_measured": not_measured,
    }


def _emulated(
    args: argparse.Namespace,
    target: CpuTarget,
    shapes: Sequence[tuple[int, int]],
    classes: Sequence[RowClass],
    tokens: Sequence[int],
) -> dict[str, Any]:
    from skim_export.measure.emulated import count_instructions
    from skim_export.measure.tables import print_counts, print_not_measured
    from skim_runtime.progress_bar import ProgressBar

    counts: list[Any] = []
    for shape in shapes:
        with ProgressBar() as progress:
            counts += count_instructions(target, shape, classes, tokens, progress)
    emulator = " ".join(target.emulator)
    print_counts(counts, f"target {target.name} under {emulator}: instructions for one weight, all tokens together")
    not_measured = [f"times: {target.missing_here()}, and an emulator's would mean nothing; --rpc names a board"]
    print_not_measured(not_measured)
    return {
        "where": emulator,
        "counts": [asdict(count) for count in counts],
        "not_measured": not_measured,
    }


def _models(args: argparse.Namespace) -> dict[str, Any]:
    from skim_export.bundle.build import write_bundle
    from skim_export.measure.models import measure_bundle, read_manifest
    from skim_export.measure.tables import print_models, print_not_measured
    from skim_runtime.progress_bar import ProgressBar

    with tempfile.TemporaryDirectory() as directory, ProgressBar() as progress:
        bundle = args.bundle
        if bundle is None:
            bundle = Path(directory)
            write_bundle(args.model, args.target, bundle, progress=progress)
        name = read_manifest(bundle)["target"]
        rows = measure_bundle(bundle, args.model, args.threads, args.prompt, args.new, args.rounds, progress)
    print_models(rows, f"prompt of {args.prompt} tokens, {args.new} new ones, {args.threads} threads, target {name}")
    not_measured = [] if args.model else ["onnxruntime: --model names the model that the bundle was made of"]
    print_not_measured(not_measured)
    return {
        "target": name,
        "prompt": args.prompt,
        "new": args.new,
        "rows": [asdict(row) for row in rows],
        "not_measured": not_measured,
    }
