"""Layers of several widths beside cuBLAS and the memory's bandwidth, in CUDA graphs."""

from __future__ import annotations

from cuda_benchmark import measure
from cuda_contenders import why_no_nbits

from device_check.work import Work
from skim_runtime.errors import UserError

__all__ = ["run"]


def run(work: Work) -> None:
    """Time what the step is about."""
    target, sizes = work.target, work.target.sizes
    shapes, widths = sizes.shapes, sizes.widths
    tokens = sizes.decode if work.step == "decode" else sizes.prefill
    if work.step == "nbits":
        if reason := why_no_nbits(target.device.provider):
            raise UserError(f"MatMulNBits can't be measured: {reason}")
        shapes, widths, tokens = shapes[:1], ("4 bits",), sizes.beside_nbits
    measure(
        {f"{rows}x{columns}": (rows, columns) for rows, columns in shapes},
        tokens,
        sizes.rounds,
        target.kernels,
        target.device,
        work.written,
        None,
        widths,
    )
