"""The measurements behind docs/results.md: each prints a table and can write JSON."""

from __future__ import annotations

import argparse
import sys

import arithmetic
import decode
import instructions
import kernels
import quality
import quality_whole
import quantizer
import synthetic

from skim_runtime.command import run_command


def main() -> int:
    """Run one benchmark and return its exit code."""
    parser = argparse.ArgumentParser(prog="python benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    quality.add_arguments(names.add_parser("quality", help="perplexity of quantization methods side by side"))
    whole = names.add_parser("quality-whole", help="the same with embedding and head quantized, against GGUF mixtures")
    quality_whole.add_arguments(whole)
    quantizer.add_arguments(names.add_parser("quantizer", help="seconds to quantize one layer"))
    kernels.add_arguments(
        names.add_parser("kernels", help="milliseconds of one linear layer, beside onnxruntime's own")
    )
    counting = names.add_parser("instructions", help="instructions for one weight, by width and arithmetic")
    instructions.add_arguments(counting)
    costs = names.add_parser("arithmetic", help="perplexity of an exported model in integers and in float32")
    arithmetic.add_arguments(costs)
    decode.add_arguments(names.add_parser("decode", help="tokens per second of a whole model, beside other exports"))
    making = names.add_parser("make-checkpoint", help="write a checkpoint of true shapes with random weights")
    synthetic.add_arguments(making)
    args = parser.parse_args()
    return run_command(f"benchmarks {args.name}", lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main())
