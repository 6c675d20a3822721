"""The few words of TVM's tensor IR that the GPU kernels are written in.

Everything goes into the IR builder that is open. Python loops are unrolled, loops of the IR are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.expr import Shuffle
from tvm.tirx.script import builder as T

__all__ = [
    "Buffer",
    "Expr",
    "add",
    "add_up",
    "barrier",
    "buffer",
    "float32",
    "function",
    "if_then_else",
    "launch",
    "let",
    "load4",
    "local",
    "minimum",
    "reinterpret",
    "scalar",
    "select",
    "serial",
    "shared",
    "store",
    "uint32",
    "when",
]

Expr = Any  # a TVM expression; TVM has no types for them
Buffer = Any


def function(name: str, body: Callable[[], None]) -> Any:
    """The PrimFunc that `body` builds. Parameters come first in it."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        body()
    return builder.get()


def buffer(name: str, dtype: str) -> Buffer:
    """A parameter in global memory; of its size the kernel knows nothing."""
    return T.arg(name, T.buffer((T.int32(),), dtype))


def scalar(name: str) -> Expr:
    """A parameter of type int32."""
    return T.arg(name, T.int32())


@contextmanager
def launch(grid: Sequence[Expr], workgroup: Sequence[int]) -> Iterator[tuple[list[Expr], list[Expr]]]:
    """The body of the kernel, run by a grid of workgroups; yields the indices of the workgroup and of the thread."""
    with ExitStack() as stack:
        groups = [
            stack.enter_context(T.launch_thread(f"blockIdx.{axis}", extent))
            for axis, extent in zip("xyz", grid, strict=False)
        ]
        threads = [
            stack.enter_context(T.launch_thread(f"threadIdx.{axis}", extent))
            for axis, extent in zip("xyz", workgroup, strict=False)
        ]
        yield groups, threads


@contextmanager
def serial(name: str, count: Expr | int) -> Iterator[Expr]:
    """A loop; yields its variable."""
    if isinstance(count, int) and count == 1:
        yield tirx.const(0, "int32")
        return
    with T.serial(count) as variable:
        yield IRBuilder.name(name, variable)


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    """Statements under a condition."""
    with T.If(condition), T.Then():
        yield


def let(name: str, value: Expr) -> Expr:
    """A value that is computed once, under a name that appears in the source."""
    return IRBuilder.name(name, T.Bind(value))


def local(name: str, count: int) -> Buffer:
    """Floats of one thread, in registers if their indices are constant."""
    return IRBuilder.name(name, T.alloc_buffer((count,), "float32", scope="local"))


def shared(name: str, count: int) -> Buffer:
    """Floats that the threads of a workgroup share."""
    return IRBuilder.name(name, T.alloc_buffer((count,), "float32", scope="shared"))


def store(target: Buffer, index: Expr | int, value: Expr) -> None:
    """Emit `target[index] = value`."""
    T.buffer_store(target, value, [index])


def add(target: Buffer, index: Expr | int, value: Expr) -> None:
    """Emit `target[index] += value`."""
    store(target, index, target[index] + value)


def barrier() -> None:
    """All threads of the workgroup have come here, and see what the others have written to shared memory."""
    T.evaluate(T.tvm_storage_sync("shared"))


def load4(source: Buffer, quad: Expr) -> list[Expr]:
    """The floats 4 quad .. 4 quad + 3: one load where the language has vectors in memory."""
    vector = let("four", source[tirx.Ramp(quad * 4, 1, 4)])
    return [Shuffle([vector], [tirx.const(i, "int32")]) for i in range(4)]


def uint32(value: int) -> Expr:
    """A constant."""
    return tirx.const(value, "uint32")


def float32(value: float) -> Expr:
    """A constant. TVM writes it with 7 digits, which must do."""
    return tirx.const(value, "float32")


def minimum(a: Expr, b: Expr | int) -> Expr:
    """The lesser of two values."""
    return T.min(a, b)


def reinterpret(dtype: str, value: Expr) -> Expr:
    """The same bits as another type."""
    return T.reinterpret(dtype, value)


def select(condition: Expr, a: Expr, b: Expr) -> Expr:
    """A value, or else b; both are computed."""
    return tirx.Select(condition, a, b)


def if_then_else(condition: Expr, a: Expr, b: Expr) -> Expr:
    """A value, or else b; only that one is computed, so it may load what exists only then."""
    return T.if_then_else(condition, a, b)


def add_up(sums: Buffer, first: Expr | int, count: int, threads: int, thread: Expr) -> None:
    """Add up `count` runs of `threads` floats in shared memory, run i into `sums[first + i * threads]`.

    The order is always the same, so results do not differ from launch to launch. All threads of the workgroup must come
    here.

    Args:
        sums: shared memory; `thread` has just written its element of each run.
        first: where the runs of these threads begin.
        count: number of runs.
        threads: of a run, a power of 2.
        thread: index of this one.
    """
    half = threads // 2
    while half:
        barrier()
        with when(thread < half), serial("run", count) as run:
            place = first + run * threads + thread
            add(sums, place, sums[place + half])
        half //= 2
    barrier()
