"""How levels and tokens are multiplied: in float32, or with levels as int8 and tokens rounded to 16 bits.

The integer arithmetic is that of docs/format.md, but that a row's sum is kept in float32 once integers could overflow.
A prepared token has the same size in every form:

    floats    padded K float32, then their sum
    words     padded K int16, then the token's scale (float32) and the sum of the int16 (int32)
    digits    padded K int8 high digits, as many low ones, then the same; an int16 is 255 * high + low
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace

from tvm import tirx
from tvm.tirx.script import builder as T

from skim_export.bundle.abi import prepared_bytes
from skim_export.bundle.kernels.tir import (
    Expr,
    cast,
    combine,
    constant,
    intrinsic,
    lanes_of,
    load,
    local,
    multiply_add,
    part,
    splat,
    store,
    sum_of_lanes,
    vector_type,
    view,
)
from skim_export.bundle.kernels.weights import Row, padded

__all__ = ["DIGIT_BASE", "FLOATS", "INTEGERS", "Arithmetic", "ArithmeticKind", "Form", "Sums"]

DIGIT_BASE = 255
# Products of a level (up to 128) and 16 bits (up to 32512) that add up within 31 bits.
MOST_PRODUCTS = (1 << 31) // (128 * 32512)


class Form(Enum):
    """Of a prepared token."""

    FLOATS = "floats"
    WORDS = "words"
    DIGITS = "digits"


class Sums:
    """Vectors of partial sums, one for each row and token, in one or two planes."""

    def __init__(self, dtype: str, lanes: int, count: int, planes: int = 1) -> None:
        self._planes = [local(vector_type(dtype, lanes), count) for _ in range(planes)]
        for plane in self._planes:
            for i in range(count):
                store(plane, i, splat(0 if dtype == "int32" else 0.0, dtype, lanes))

    def get(self, i: int) -> list[Expr]:
        """Partial sums `i` in every plane."""
        return [plane[i] for plane in self._planes]

    def put(self, i: int, values: list[Expr]) -> None:
        """Replace partial sums `i`."""
        for plane, value in zip(self._planes, values, strict=True):
            store(plane, i, value)


class Arithmetic(ABC):
    """An arithmetic on the tokens of a function.

    Attributes:
        level: type of levels as they are multiplied.
    """

    level: str

    @abstractmethod
    def levels(self, row: Row, entries: Expr) -> Expr:
        """What is multiplied, of what `Row.look_up` returned."""

    @abstractmethod
    def token(self, token: Expr, column: Expr, lanes: int) -> list[Expr]:
        """Some columns of a token, bound."""

    @abstractmethod
    def sums(self, count: int, lanes: int) -> Sums:
        """Sums of products, 0, to which those of `lanes` columns are added at once."""

    @abstractmethod
    def add_product(self, sums: Sums, i: int, levels: Expr, token: list[Expr]) -> None:
        """Add the products of levels and columns to partial sums `i`."""

    @abstractmethod
    def total(self, sums: Sums, i: int) -> Expr:
        """Partial sums `i`, added up, as float32."""

    @abstractmethod
    def most_columns(self, lanes: int) -> int | None:
        """Columns whose products fit into sums to which those of `lanes` columns are added at once; None for any."""

    @abstractmethod
    def result(self, row: Row, total: Expr, token: Expr, is_first: Expr | None = None) -> Expr:
        """What a row's total means for a token; if not `is_first`, without what is due once only."""


class _Floats(Arithmetic):
    """Float32 throughout."""

    level = "float32"

    def __init__(self, given: SimpleNamespace) -> None:
        self._x = view(given.x, "float32")
        self._K = given.K
        self._stride = T.Bind(prepared_bytes(given.K) // 4)

    def levels(self, row: Row, entries: Expr) -> Expr:
        return row.floats(entries)

    def token(self, token: Expr, column: Expr, lanes: int) -> list[Expr]:
        return [T.Bind(load(self._x, token * self._stride + column, lanes))]

    def sums(self, count: int, lanes: int) -> Sums:
        return Sums("float32", lanes, count)

    def add_product(self, sums: Sums, i: int, levels: Expr, token: list[Expr]) -> None:
        sums.put(i, [multiply_add(levels, token[0], sums.get(i)[0])])

    def total(self, sums: Sums, i: int) -> Expr:
        return sum_of_lanes(sums.get(i)[0])

    def most_columns(self, lanes: int) -> None:
        return None

    def result(self, row: Row, total: Expr, token: Expr, is_first: Expr | None = None) -> Expr:
        x_sum = self._x[token * self._stride + padded(self._K)]
        if is_first is not None:
            x_sum = tirx.Select(is_first, x_sum, constant(0.0, "float32"))
        return row.finish(total, x_sum, constant(1.0, "float32"))


class _IntegerArithmetic(Arithmetic):
    """What integer arithmetics share: a token ends with its scale and the sum of its integers."""

    def __init__(self, given: SimpleNamespace) -> None:
        self._K = given.K
        self._bytes = T.Bind(prepared_bytes(given.K))
        self._scale, self._sum = view(given.x, "float32"), view(given.x, "int32")

    def result(self, row: Row, total: Expr, token: Expr, is_first: Expr | None = None) -> Expr:
        end = token * (self._bytes // 4) + padded(self._K) // 2
        scale = self._scale[end]
        x_sum = scale * cast(self._sum[end + 1], "float32")
        if is_first is not None:
            x_sum = tirx.Select(is_first, x_sum, constant(0.0, "float32"))
        return row.finish(total, x_sum, scale)


class _Words(_IntegerArithmetic):
    """Tokens of int16.

    Args:
        given: the function's parameters.
        multiply: partial sums (int32), levels and columns (int16) -> partial sums.
        width: columns that go into one partial sum at once.
    """

    level = "int16"

    def __init__(self, given: SimpleNamespace, multiply: Callable[[Expr, Expr, Expr], Expr], width: int) -> None:
        super().__init__(given)
        self._x = view(given.x, "int16")
        self._multiply, self._width = multiply, width

    def levels(self, row: Row, entries: Expr) -> Expr:
        return cast(cast(entries, "int8"), "int16")

    def token(self, token: Expr, column: Expr, lanes: int) -> list[Expr]:
        return [T.Bind(load(self._x, token * (self._bytes // 2) + column, lanes))]

    def sums(self, count: int, lanes: int) -> Sums:
        return Sums("int32", max(1, lanes // self._width), count)

    def add_product(self, sums: Sums, i: int, levels: Expr, token: list[Expr]) -> None:
        sums.put(i, [self._multiply(sums.get(i)[0], levels, token[0])])

    def total(self, sums: Sums, i: int) -> Expr:
        return sum_of_lanes(cast(sums.get(i)[0], "float32"))

    def most_columns(self, lanes: int) -> int:
        return MOST_PRODUCTS * max(1, lanes // self._width)


class _Digits(_IntegerArithmetic):
    """Tokens of two digits, for instructions that add up the products of four int8."""

    level = "int8"

    def __init__(self, given: SimpleNamespace) -> None:
        super().__init__(given)
        self._x = view(given.x, "int8")

    def levels(self, row: Row, entries: Expr) -> Expr:
        return cast(entries, "int8")

    def token(self, token: Expr, column: Expr, lanes: int) -> list[Expr]:
        start = token * self._bytes + column
        return [T.Bind(load(self._x, at, lanes)) for at in (start, start + padded(self._K))]

    def sums(self, count: int, lanes: int) -> Sums:
        return Sums("int32", max(1, lanes // 4), count, planes=2)

    def add_product(self, sums: Sums, i: int, levels: Expr, token: list[Expr]) -> None:
        sums.put(i, [_sdot(plane, levels, digits) for plane, digits in zip(sums.get(i), token, strict=True)])

    def total(self, sums: Sums, i: int) -> Expr:
        high, low = (cast(sum_of_lanes(plane), "float32") for plane in sums.get(i))
        return multiply_add(high, constant(float(DIGIT_BASE), "float32"), low)

    def most_columns(self, lanes: int) -> None:
        return None  # the format allows integers up to 65536 columns


def _sdot(sums: Expr, levels: Expr, digits: Expr) -> Expr:
    lanes = lanes_of(levels)
    if lanes < 8:
        products = T.Bind(cast(levels, "int32") * cast(digits, "int32"))
        return sums + sum_of_lanes(products)
    width = min(16, lanes)
    out = width // 4
    name = f"llvm.aarch64.neon.sdot.v{out}i32.v{width}i8"
    dots = [
        intrinsic("int32", out, name, part(sums, i // 4, out), part(levels, i, width), part(digits, i, width))
        for i in range(0, lanes, width)
    ]
    return combine(dots)


def _widening(sums: Expr, levels: Expr, token: Expr) -> Expr:
    return sums + cast(levels, "int32") * cast(token, "int32")


def _pmaddwd(sums: Expr, levels: Expr, token: Expr) -> Expr:
    """The sums of two neighbouring products each."""
    lanes = lanes_of(levels)
    width = min(lanes, 16)
    if lanes == 1:
        return _widening(sums, levels, token)
    name = {16: "llvm.x86.avx2.pmadd.wd", 8: "llvm.x86.sse2.pmadd.wd"}.get(width)
    if name is None:
        products = T.Bind(cast(levels, "int32") * cast(token, "int32"))
        return sums + combine([sum_of_lanes(part(products, i, 2)) for i in range(0, lanes, 2)])
    pairs = [
        intrinsic("int32", width // 2, name, part(levels, i, width), part(token, i, width))
        for i in range(0, lanes, width)
    ]
    return sums + combine(pairs)


def _vpdpwssd(sums: Expr, levels: Expr, token: Expr) -> Expr:
    """The same, of AVX-512 VNNI."""
    lanes = lanes_of(levels)
    if lanes < 8:
        return _pmaddwd(sums, levels, token)
    return intrinsic("int32", lanes // 2, f"llvm.x86.avx512.vpdpwssd.{lanes * 16}", sums, levels, token)


@dataclass(frozen=True)
class ArithmeticKind:
    """An arithmetic as targets name it.

    Attributes:
        form: of its tokens.
        on: makes it for the parameters of a function.
    """

    form: Form
    on: Callable[[SimpleNamespace], Arithmetic]


FLOATS = ArithmeticKind(Form.FLOATS, _Floats)
INTEGERS = {
    "widening": ArithmeticKind(Form.WORDS, lambda given: _Words(given, _widening, 1)),
    "pmaddwd": ArithmeticKind(Form.WORDS, lambda given: _Words(given, _pmaddwd, 2)),
    "vpdpwssd": ArithmeticKind(Form.WORDS, lambda given: _Words(given, _vpdpwssd, 2)),
    "sdot": ArithmeticKind(Form.DIGITS, _Digits),
}
