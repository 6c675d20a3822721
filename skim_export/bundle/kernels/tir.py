"""The few words of TVM's tensor IR that the kernels are written in.

Vectors may be longer than a register: LLVM splits them, so the same program serves every instruction set. Values are
bound to names where they are used more than once; nothing here has a state of its own, all goes into the IR builder
that is open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from tvm import tirx
from tvm.tirx.expr import Shuffle
from tvm.tirx.script import builder as T

__all__ = [
    "cast",
    "combine",
    "constant",
    "fold_lanes",
    "intrinsic",
    "lanes_of",
    "load",
    "local",
    "mirrored",
    "multiply_add",
    "parameters",
    "part",
    "prefetch",
    "repeat",
    "splat",
    "store",
    "sum_of_lanes",
    "vector_type",
    "view",
]

Expr = Any  # a TVM expression; TVM has no types for them
Buffer = Any


def vector_type(dtype: str, lanes: int) -> str:
    """`float32` and 8 make `float32x8`."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def lanes_of(value: Expr) -> int:
    """Lanes of a vector."""
    return int(value.ty.dtype.lanes)


def parameters(**types: str) -> SimpleNamespace:
    """Parameters of the function that is being built: `float32*` makes a buffer, `int32` a scalar. Call it first."""
    given = {
        name: T.arg(name, T.ptr(dtype.removesuffix("*")) if dtype.endswith("*") else getattr(T, dtype)())
        for name, dtype in types.items()
    }
    for name, dtype in types.items():
        if dtype.endswith("*"):
            given[name] = T.decl_buffer((1,), dtype.removesuffix("*"), data=given[name])
    return SimpleNamespace(**given)


def view(buffer: Buffer, dtype: str) -> Buffer:
    """The same memory with elements of another type."""
    return buffer if buffer.dtype == dtype else T.decl_buffer((1,), dtype, data=buffer.data)


def local(dtype: str, count: int = 1) -> Buffer:
    """Memory on the stack, in registers where it can be. Without the annotation TVM asks its runtime for it."""
    return T.alloc_buffer((count,), dtype, scope="local", annotations={"disable_lower_builtin": True})


def constant(value: float, dtype: str) -> Expr:
    """A scalar."""
    return tirx.const(value, dtype)


def splat(value: Expr | float, dtype: str, lanes: int) -> Expr:
    """A scalar in every lane."""
    scalar = constant(value, dtype) if isinstance(value, (int, float)) else value
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def load(buffer: Buffer, index: Expr, lanes: int) -> Expr:
    """`lanes` consecutive elements, which need not be aligned."""
    return buffer.vload([index], vector_type(str(buffer.dtype), lanes))


def store(buffer: Buffer, index: Expr | int, value: Expr) -> None:
    """The lanes of a value to consecutive elements."""
    lanes = lanes_of(value)
    one_element = lanes == buffer.dtype.lanes
    T.buffer_store(buffer, value, [index if one_element else tirx.Ramp(index, 1, lanes)])


def cast(value: Expr, dtype: str) -> Expr:
    """Every lane to another type."""
    return value.astype(vector_type(dtype, lanes_of(value)))


def part(value: Expr, first: int, lanes: int) -> Expr:
    """Lanes first .. first + lanes - 1."""
    if lanes == lanes_of(value):
        return value
    return Shuffle([value], [tirx.const(i, "int32") for i in range(first, first + lanes)])


def repeat(value: Expr, lanes: int) -> Expr:
    """A vector again and again, up to `lanes`."""
    return combine([value] * (lanes // lanes_of(value)))


def combine(parts: Sequence[Expr]) -> Expr:
    """Vectors of one length, one after the other."""
    if len(parts) == 1:
        return parts[0]
    lanes = sum(lanes_of(p) for p in parts)
    return Shuffle(list(parts), [tirx.const(i, "int32") for i in range(lanes)])


def mirrored(value: Expr) -> Expr:
    """The lanes of a vector, and their negatives in reversed order."""
    lanes = lanes_of(value)
    backwards = Shuffle([value], [tirx.const(i, "int32") for i in reversed(range(lanes))])
    return combine([value, splat(0, value.ty.dtype.with_lanes(1), lanes) - backwards])


def intrinsic(dtype: str, lanes: int, name: str, *arguments: Expr) -> Expr:
    """An instruction without side effects, by its name in LLVM."""
    return T.call_llvm_pure_intrin(vector_type(dtype, lanes), name, *arguments)


def prefetch(buffer: Buffer, index: Expr) -> None:
    """Fetch an element's cache line for reading."""
    read, keep, data = T.int32(0), T.int32(3), T.int32(1)
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(buffer[index]), read, keep, data))


def multiply_add(a: Expr, b: Expr, c: Expr) -> Expr:
    """The value of a * b + c: one rounding where the hardware has such an instruction, two where it has not."""
    return intrinsic("float32", lanes_of(a), "llvm.fmuladd", a, b, c)


def fold_lanes(value: Expr, combine_two: Callable[[Expr, Expr], Expr]) -> Expr:
    """All lanes combined to one value, half of them at a time."""
    lanes = lanes_of(value)
    while lanes > 1:
        bound = T.Bind(value)
        lanes //= 2
        value = combine_two(part(bound, 0, lanes), part(bound, lanes, lanes))
    return value


def sum_of_lanes(value: Expr) -> Expr:
    """The sum of all lanes, added up by halves."""
    return fold_lanes(value, lambda a, b: a + b)
