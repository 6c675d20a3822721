"""Kernels under an emulator: whether they are right, and how many instructions they take. Times would mean nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skim_export.bundle.abi import Product, prepare_name, prepared_bytes
from skim_export.bundle.kernels.compile import compile_kernels
from skim_export.bundle.target import CpuTarget
from skim_export.measure.running.layers import Layers, random_layer
from skim_export.measure.running.program import Program
from skim_export.measure.sessions import activations
from skim_export.packed import RowClass
from skim_runtime.progress import Progress

__all__ = ["Count", "count_instructions"]


@dataclass(frozen=True)
class Count:
    """Instructions of a kernel; those that prepare the tokens are left out.

    Attributes:
        shape: NxK.
        tokens: M.
        rows: class of all rows.
        arithmetic: "float" or "integer".
        error: relative error against numpy.
        instructions_per_weight: for all tokens together.
    """

    shape: str
    tokens: int
    rows: str
    arithmetic: str
    error: float
    instructions_per_weight: float


def count_instructions(
    target: CpuTarget,
    shape: tuple[int, int],
    classes: Sequence[RowClass],
    tokens: Sequence[int],
    progress: Progress,
) -> Iterator[Count]:
    """Check the kernels of some row classes in both arithmetics, and count their instructions.

    Raises:
        UserError: the emulator or the compiler is missing, or the emulator does not count.
        RuntimeError: a kernel computes something wrong.
    """
    N, K = shape
    progress.start(f"{N}x{K}", len(classes))
    for row_class in classes:
        with tempfile.TemporaryDirectory() as directory:
            products = [Product(row_class, integer, N, K) for integer in (False, True)]
            kernels = compile_kernels(products, [], target)
            functions = [*(prepare_name(product.integer) for product in products), *kernels.matmuls.values()]
            program = Program(kernels.object_file, functions, target, Path(directory))
            layers = Layers.of([random_layer(np.random.default_rng(0), row_class, N, K)], row_class)
            for product, kernel in kernels.matmuls.items():
                for m in tokens:
                    yield _counted(program, layers, product, kernel, m)
        progress.step(row_class.name)
    progress.finish()


def _counted(program: Program, layers: Layers, product: Product, kernel: str, tokens: int) -> Count:
    N, K, tensors = layers.N, layers.K, layers.tensors
    x = activations(tokens, K)
    shape = (tokens, prepared_bytes(K) // 4)
    (prepared,) = program.run([(prepare_name(product.integer), x, tensors["column_scale"], shape, tokens, K)])
    rows = [tensors[name] for name in ("codes", "codebook", "row_scale", "row_index")]
    call = (kernel, *rows, prepared, (tokens, N), tokens, K, N, 0, N)
    (y,) = program.run([call])
    return Count(
        shape=f"{N}x{K}",
        tokens=tokens,
        rows=product.row_class.name,
        arithmetic="integer" if product.integer else "float",
        error=layers.check(kernel, product.integer, x, y),
        instructions_per_weight=program.instructions(call) / (N * K),
    )
