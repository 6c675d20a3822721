"""Milliseconds of one layer of a mixture of experts inside onnxruntime, `LutMoe` beside onnxruntime's own `QMoE`.

Experts are chosen at random, others in each call, so that those of a token are seldom in the cache. All contenders see
the same tokens and experts, live in one process and take turns. Each is compared with numpy before it is timed. What is
read for a token is counted from the weights, scales and codebooks of its experts.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from kernels import WIDTHS, width_name
from onnx import TensorProto, helper, numpy_helper

from skim_export.measure.random_linear import random_linear
from skim_export.packed import PackedLinear
from skim_runtime.errors import UserError
from skim_runtime.library import kernel_name, library_path
from skim_runtime.measure.report import report_head, save_json
from skim_runtime.measure.rounds import mean_seconds, take_turns
from skim_runtime.measure.session import open_session
from skim_runtime.measure.tables import number, say, text_table
from skim_runtime.operators import DOMAIN, INTEGER_ACCURACY, LUT_MOE, SWIGLU
from skim_runtime.progress_bar import ProgressBar

__all__ = ["HEADINGS", "add_arguments", "cells", "run"]

Float32 = npt.NDArray[np.float32]
BATCHES = 16  # of other experts, in turn
BOUND = 5e-2  # of the relative error, as activations may be rounded to bytes
BLOCK = 32  # columns of QMoE's scales
FAST_QMOE = "ORT_USE_MLAS_Q4_GEMM_MOE"  # a faster way, which it takes only if asked
HEADINGS = ("weights", "tokens", "threads", "MB", "MB read a token", "ms", "GB/s", "times QMoE")


@dataclass(frozen=True)
class Sizes:
    """Of a mixture."""

    experts: int
    per_token: int
    hidden: int
    inner: int


@dataclass(frozen=True)
class Batch:
    """Tokens `[T, hidden]`, the logits of their router `[T, experts]`, and the experts and shares that follow."""

    x: Float32
    logits: Float32
    chosen: npt.NDArray[np.int64]
    shares: Float32

    @classmethod
    def random(cls, random: np.random.Generator, sizes: Sizes, tokens: int) -> Batch:
        """Every expert is as likely as another."""
        logits = random.standard_normal((tokens, sizes.experts), np.float32)
        chosen = np.argsort(-logits, axis=1)[:, : sizes.per_token]
        powers = np.exp(np.take_along_axis(logits, chosen, axis=1))
        x = random.standard_normal((tokens, sizes.hidden), np.float32)
        return cls(x, logits, chosen, powers / powers.sum(axis=1, keepdims=True))


class Contender:
    """A mixture in one node.

    Args:
        name: what the table calls it.
        model: a serialized model.
        inputs: what it takes of a batch, by names of inputs.
        nbytes: of its weights.
        weights: gate, up and down of an expert, float32.
    """

    def __init__(
        self,
        name: str,
        model: bytes,
        inputs: Callable[[Batch], dict[str, npt.NDArray[Any]]],
        nbytes: int,
        weights: Callable[[int], tuple[Float32, Float32, Float32]],
    ) -> None:
        self.name, self.nbytes = name, nbytes
        self._model, self._inputs, self._weights = model, inputs, weights
        self._session: Any = None

    def open(self, threads: int) -> None:
        """Make a session of so many threads."""
        self._session = open_session(self._model, threads, library_path())

    def check(self, batch: Batch) -> float:
        """Relative error for a batch, or an exception: the figures of a wrong result are worth nothing."""
        wanted = np.zeros(batch.x.shape)
        for token, (x, chosen, shares) in enumerate(zip(batch.x, batch.chosen, batch.shares, strict=True)):
            for expert, share in zip(chosen, shares, strict=True):
                gate, up, down = self._weights(int(expert))
                g, u = gate @ x, up @ x
                wanted[token] += share * (down @ (g / (1 + np.exp(-g)) * u))
        found = self._session.run(None, self._inputs(batch))[0]
        error = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
        if not error < BOUND:
            raise RuntimeError(f"{self.name}: off by {error:.2g}, more than rounding explains")
        return error

    def call(self, batches: list[Batch]) -> Callable[[], None]:
        """A call on the next of the batches."""
        feeds = itertools.cycle([self._inputs(batch) for batch in batches])
        return lambda: self._session.run(None, next(feeds))


def _model(operator: str, domain: str, inputs: dict[str, int], attributes: dict[str, Any], tensors: Any) -> bytes:
    infos = [helper.make_tensor_value_info(name, kind, None) for name, kind in inputs.items()]
    node = helper.make_node(operator, [*inputs, *tensors], ["Y"], domain=domain, **attributes)
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)
    weights = [numpy_helper.from_array(array, name) for name, array in tensors.items() if array is not None]
    graph = helper.make_graph([node], "mixture", infos, [y], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1), helper.make_opsetid("com.microsoft", 1)]
    serialized: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return serialized


def ours(random: np.random.Generator, sizes: Sizes, bits: str) -> Contender:
    """`LutMoe` with integer arithmetic, rows as `skim-export` writes them."""
    shapes = (sizes.inner, sizes.hidden), (sizes.inner, sizes.hidden), (sizes.hidden, sizes.inner)
    parts = [random_linear(random, sizes.experts * n, k, WIDTHS[bits]) for n, k in shapes]
    own = {
        "experts": sizes.experts,
        "per_token": sizes.per_token,
        "gating": SWIGLU,
        "accuracy_level": INTEGER_ACCURACY,
    }
    tensors = {
        prefix + name: getattr(part, name)
        for prefix, part in zip(LUT_MOE.prefixes, parts, strict=True)
        for name in PackedLinear.TENSORS
    }
    inputs = dict(zip(LUT_MOE.first_inputs, (TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT), strict=True))
    model = _model(LUT_MOE.name, DOMAIN, inputs, LUT_MOE.node_attributes(parts, **own), tensors)
    dense = [part.dequantize().reshape(sizes.experts, -1, part.in_features) for part in parts]
    return Contender(
        width_name(bits),
        model,
        lambda batch: {"X": batch.x, "experts": batch.chosen, "shares": batch.shares},
        sum(part.nbytes for part in parts),
        lambda expert: (dense[0][expert], dense[1][expert], dense[2][expert]),
    )


def of_onnxruntime(random: np.random.Generator, sizes: Sizes) -> Contender:
    """`QMoE` with 4 bits and a scale for each block of 32 columns, rows of gate and up in turn."""
    shapes = {"1": (2 * sizes.inner, sizes.hidden), "2": (sizes.hidden, sizes.inner)}
    codes = {
        name: np.frombuffer(random.bytes(sizes.experts * n * k // 2), np.uint8).reshape(sizes.experts, n, k // 2)
        for name, (n, k) in shapes.items()
    }
    scales = {
        name: random.uniform(1e-3, 1e-2, (sizes.experts, n, k // BLOCK)).astype(np.float32)
        for name, (n, k) in shapes.items()
    }
    tensors = {"codes1": codes["1"], "scales1": scales["1"], "": None, "codes2": codes["2"], "scales2": scales["2"]}
    attributes = {
        "k": sizes.per_token,
        "activation_type": "swiglu",
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "swiglu_fusion": 1,
        "normalize_routing_weights": 1,
        "expert_weight_bits": 4,
        "block_size": BLOCK,
    }
    inputs = {"X": TensorProto.FLOAT, "logits": TensorProto.FLOAT}
    model = _model("QMoE", "com.microsoft", inputs, attributes, tensors)

    def weights(expert: int) -> tuple[Float32, Float32, Float32]:
        gate_up, down = (_of_blocks(codes[name][expert], scales[name][expert]) for name in shapes)
        return gate_up[0::2], gate_up[1::2], down

    nbytes = sum(array.nbytes for arrays in (codes, scales) for array in arrays.values())
    return Contender("QMoE 4 bits", model, lambda batch: {"X": batch.x, "logits": batch.logits}, nbytes, weights)


def _of_blocks(codes: npt.NDArray[np.uint8], scales: Float32) -> Float32:
    """Weights `[N, K]` of codes of 4 bits, two a byte, the lower first, with 8 in the middle."""
    levels = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1, BLOCK).astype(np.float32) - 8
    return (levels * scales[:, :, None]).reshape(len(codes), -1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--experts", type=int, default=128, help="(%(default)s)")
    parser.add_argument("--per-token", type=int, default=8, help="experts of a token (%(default)s)")
    parser.add_argument("--hidden", type=int, default=2048, help="(%(default)s)")
    parser.add_argument("--inner", type=int, default=768, help="rows of an expert's gate (%(default)s)")
    parser.add_argument(
        "--bits", nargs="+", default=["2-windows", "3-windows", "4-windows"], choices=list(WIDTHS), help="(%(default)s)"
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 128], help="(1 16 128)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="(1 2)")
    parser.add_argument("--rounds", type=int, default=5, help="medians are over so many (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a contender in a round (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a JSON file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    sizes = Sizes(args.experts, args.per_token, args.hidden, args.inner)
    if not 1 <= sizes.per_token <= sizes.experts:
        raise UserError(f"--per-token {sizes.per_token}: must be from 1 to --experts {sizes.experts}")
    for name, columns in (("--hidden", sizes.hidden), ("--inner", sizes.inner)):
        if columns < 1 or columns % BLOCK:
            raise UserError(f"{name} {columns}: must be a multiple of {BLOCK}")
    os.environ[FAST_QMOE] = "1"
    random = np.random.default_rng(0)
    contenders = [*(ours(random, sizes, bits) for bits in args.bits), of_onnxruntime(random, sizes)]
    rows: list[dict[str, Any]] = []
    report = {**report_head(), "kernel": kernel_name(), "sizes": asdict(sizes), "rows": rows}
    for threads in args.threads:
        for contender in contenders:
            contender.open(threads)
        for tokens in args.tokens:
            batches = [Batch.random(random, sizes, tokens) for _ in range(BATCHES)]
            errors = [contender.check(Batch.random(random, sizes, 2)) for contender in contenders]
            turns = {
                i: partial(mean_seconds, contender.call(batches), args.seconds)
                for i, contender in enumerate(contenders)
            }
            with ProgressBar() as progress:
                found = take_turns(turns, args.rounds, progress, f"{tokens} tokens, {threads} threads")
            used = np.mean([len(np.unique(batch.chosen)) for batch in batches]) / sizes.experts
            medians = [statistics.median(found[i]) for i in range(len(contenders))]
            for contender, error, median in zip(contenders, errors, medians, strict=True):
                rows.append(
                    {
                        "contender": contender.name,
                        "tokens": tokens,
                        "threads": threads,
                        "nbytes": contender.nbytes,
                        "read": contender.nbytes * used,
                        "error": error,
                        "milliseconds": 1e3 * median,
                        "to_qmoe": medians[-1] / median,
                    }
                )
            save_json(args.json, report)
    say(text_table(HEADINGS, [cells(row, sizes.per_token / sizes.experts) for row in rows], "one layer"))


def cells(row: dict[str, Any], share: float) -> tuple[str, ...]:
    """A line of the table; `share` of the experts are a token's."""
    return (
        row["contender"],
        str(row["tokens"]),
        str(row["threads"]),
        f"{row['nbytes'] / 1e6:.1f}",
        f"{row['nbytes'] * share / 1e6:.2f}",
        f"{row['milliseconds']:.3f}",
        f"{row['read'] / row['milliseconds'] / 1e6:.1f}",
        number(row["to_qmoe"], ".2f"),
    )
