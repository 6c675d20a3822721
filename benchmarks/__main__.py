"""The measurements behind docs/results.md: each prints a table and can write JSON."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from skim_runtime.command import run_command
from skim_runtime.errors import UserError

# Name -> module and what it measures. Each needs packages of its own, so only the one that is called is imported.
BENCHMARKS = {
    "quality": ("quality", "perplexity of quantization methods side by side"),
    "quality-whole": ("quality_whole", "the same with embedding and head quantized, against GGUF mixtures"),
    "quantizer": ("quantizer", "seconds to quantize one layer"),
    "kernels": ("kernels", "milliseconds of one linear layer, beside onnxruntime's own"),
    "mixture": ("mixture", "milliseconds of one mixture of experts, beside onnxruntime's own"),
    "instructions": ("instructions", "instructions for one weight, by width and arithmetic"),
    "make-checkpoint": ("synthetic", "no measurement: writes a checkpoint of true shapes with random weights"),
    "train-mixture": ("train_mixture", "no measurement: trains a small mixture of experts on texts"),
    "arithmetic": ("arithmetic", "perplexity of an exported model in integers and in float32"),
    "tables": ("tables", "no measurement: makes the tables of the pages from docs/results/*.json"),
    "architectures": ("architectures", "no measurement: what is tested of every architecture, from the tests"),
    "texts": ("texts", "no measurement: writes the texts to calibrate and evaluate on"),
    "real-model": ("real_model", "a real model, e.g. a GGUF file, exported at some widths: quality, time, memory"),
    "decode": ("decode", "tokens per second of a whole model, beside other exports"),
    "cuda": ("cuda_benchmark", "microseconds of one linear layer on a GPU, beside cuBLAS; needs torch, numpy and nvcc"),
    "device-check": ("device_check.command", "everything that a GPU is asked, in minutes and steps; see docs/cuda.md"),
    "product": ("device_check.product", "no measurement: launches one product, for a profiler to look at"),
    "parcels": ("device_check.parcels", "no measurement: files in parts, for a machine that little can be carried to"),
    "roofline": ("roofline", "what the machine code of the CUDA kernels lets GPUs do at most; needs no GPU"),
    "prefill-roofline": ("prefill_roofline", "the same for many tokens on an H100, beside what is assumed of cuBLAS"),
}


def main() -> int:
    """Run one benchmark and return its exit code."""
    chosen = next((argument for argument in sys.argv[1:2] if argument in BENCHMARKS), None)
    return run_command(f"benchmarks {chosen}" if chosen else "benchmarks", lambda: run(chosen))


def run(chosen: str | None) -> None:
    """Parse the command line, of which `chosen` is the benchmark, and run it."""
    parser = argparse.ArgumentParser(prog="python benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, (module, help_text) in BENCHMARKS.items():
        benchmark = names.add_parser(name, help=help_text)
        if name == chosen:
            try:
                import_module(module).add_arguments(benchmark)
            except ModuleNotFoundError as error:
                raise UserError(f"{error.name} is missing: this benchmark needs it") from error
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    sys.exit(main())
