"""Pieces of TIR that several functions are made of."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script import builder as T

from skim_export.bundle.kernels.tir import Expr, local, multiply_add, splat, store, sum_of_lanes, vector_type

__all__ = ["dot", "exponential"]

LANES = 16  # floats added side by side: one AVX-512 register, two of AVX2, four of NEON


def dot(a: Callable[[Expr, int], Expr], b: Callable[[Expr, int], Expr], size: int) -> Expr:
    """Emit the product sum of two vectors; a(k, n) and b(k, n) are their n elements from k on. Returns the sum."""
    lanes = math.gcd(size, LANES)
    sums = local(vector_type("float32", lanes))
    store(sums, 0, splat(0.0, "float32", lanes))
    with T.serial(0, size // lanes) as step:
        store(sums, 0, multiply_add(a(step * lanes, lanes), b(step * lanes, lanes), sums[0]))
    return T.Bind(sum_of_lanes(sums[0]))


def exponential(x: Expr) -> Expr:
    """e^x in float32 to a few units in the last place, of operations that LLVM vectorizes, unlike its exp.

    x = n ln 2 + r with an integer n and a small r: e^x = 2^n e^r, and e^r is a polynomial (Cephes).
    """
    x = tirx.max(tirx.min(x, T.float32(88.0)), T.float32(-87.0))  # beyond it, 2^n is no normal number
    n = T.floor(x * T.float32(math.log2(math.e)) + T.float32(0.5))
    r = x - n * T.float32(0.693359375) + n * T.float32(2.12194440e-4)
    power = T.float32(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0):
        power = power * r + T.float32(c)
    return power * T.reinterpret("float32", (T.Cast("int32", n) + 127) << 23)
