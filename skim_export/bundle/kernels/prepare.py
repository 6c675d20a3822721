"""Tokens in the form in which the products read them (arithmetic.py describes the forms)."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from skim_export.bundle.abi import prepared_bytes
from skim_export.bundle.kernels.arithmetic import DIGIT_BASE, Form
from skim_export.bundle.kernels.tir import (
    Expr,
    cast,
    constant,
    fold_lanes,
    lanes_of,
    load,
    local,
    parameters,
    splat,
    store,
    sum_of_lanes,
    view,
)
from skim_export.bundle.kernels.weights import padded

__all__ = ["prepare"]

VECTOR_LANES = 16
LARGEST = 127 * DIGIT_BASE + 127  # of the integers that a token is rounded to
ROUNDING = 12582912.0  # 1.5 * 2^23: added to a float of less than 2^22, it leaves no room for a fraction
ROUNDING_BITS = 0x4B400000


def prepare(form: Form, name: str) -> Any:
    """A PrimFunc: tokens times the column scale, in one of the forms.

    Its parameters are those of `skim_prepare` in skim_kernels.h.
    """
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        given = parameters(x="float32*", column_scale="float32*", prepared="uint8*", M="int32", K="int32")
        token = _Token(given)
        with T.serial(0, given.M) as m:
            if form == Form.FLOATS:
                token.floats(m)
            else:
                token.integers(m, digits=form == Form.DIGITS)
    return ib.get()


class _Token:
    def __init__(self, given: SimpleNamespace) -> None:
        self._x, self._column_scale, self._prepared = given.x, given.column_scale, given.prepared
        self._K = given.K
        self._bytes = T.Bind(prepared_bytes(given.K))

    def _each(self, m: Expr, emit: Callable[[Expr, Expr], None]) -> None:
        """Hand the columns of token `m`, times their scales, and their index to `emit`: vectors, then what is left."""
        K = self._K
        whole = T.Bind(K // VECTOR_LANES)
        with T.serial(0, whole) as i:
            at = i * VECTOR_LANES
            emit(T.Bind(load(self._x, m * K + at, VECTOR_LANES) * load(self._column_scale, at, VECTOR_LANES)), at)
        with T.serial(0, padded(K) - whole * VECTOR_LANES) as i:
            at = T.Bind(whole * VECTOR_LANES + i)
            inside = T.Bind(T.min(at, K - 1))  # nothing is read behind the token's end
            value = self._x[m * K + inside] * self._column_scale[inside]
            emit(T.Bind(tirx.Select(at < K, value, constant(0.0, "float32"))), at)

    def floats(self, m: Expr) -> None:
        prepared, start = view(self._prepared, "float32"), T.Bind(m * (self._bytes // 4))
        total = _Total("float32")

        def emit(values: Expr, at: Expr) -> None:
            store(prepared, start + at, values)
            total.add(values)

        self._each(m, emit)
        store(prepared, start + padded(self._K), total.value())

    def integers(self, m: Expr, *, digits: bool) -> None:
        largest = local("int32")
        store(largest, 0, constant(0, "int32"))

        def emit_largest(values: Expr, at: Expr) -> None:
            # Floats without their signs compare as integers.
            bits = T.reinterpret(f"int32x{VECTOR_LANES}" if lanes_of(values) > 1 else "int32", values)
            magnitudes = T.Bind(bits & splat(0x7FFFFFFF, "int32", lanes_of(values)))
            store(largest, 0, T.max(largest[0], fold_lanes(magnitudes, T.max)))

        self._each(m, emit_largest)
        scale = T.Bind(T.reinterpret("float32", largest[0]) / constant(float(LARGEST), "float32"))
        zero, one = constant(0.0, "float32"), constant(1.0, "float32")
        inverse = T.Bind(tirx.Select(scale > zero, one / scale, zero))
        total = _Total("int32")
        start = T.Bind(m * self._bytes)

        def emit(values: Expr, at: Expr) -> None:
            # The format rounds the product, too. The bound changes nothing, but keeps LLVM from fusing the product with
            # the addition that rounds it.
            product = values * splat(inverse, "float32", lanes_of(values))
            integers = T.Bind(_rounded(T.min(product, splat(float(LARGEST), "float32", lanes_of(values)))))
            total.add(integers)
            if digits:
                inverse_base = splat(1.0 / DIGIT_BASE, "float32", lanes_of(values))
                high = T.Bind(_rounded(cast(integers, "float32") * inverse_base))
                low = integers - high * splat(DIGIT_BASE, "int32", lanes_of(values))
                store(view(self._prepared, "int8"), start + at, cast(high, "int8"))
                store(view(self._prepared, "int8"), start + padded(self._K) + at, cast(low, "int8"))
            else:
                store(view(self._prepared, "int16"), m * (self._bytes // 2) + at, cast(integers, "int16"))

        self._each(m, emit)
        end = T.Bind(m * (self._bytes // 4) + padded(self._K) // 2)
        store(view(self._prepared, "float32"), end, scale)
        store(view(self._prepared, "int32"), end + 1, total.value())


class _Total:
    """The sum of vectors and of single values."""

    def __init__(self, dtype: str) -> None:
        zero = 0 if dtype == "int32" else 0.0
        self._vector, self._single = local(f"{dtype}x{VECTOR_LANES}"), local(dtype)
        store(self._vector, 0, splat(zero, dtype, VECTOR_LANES))
        store(self._single, 0, splat(zero, dtype, 1))

    def add(self, values: Expr) -> None:
        buffer = self._vector if lanes_of(values) > 1 else self._single
        store(buffer, 0, buffer[0] + values)

    def value(self) -> Expr:
        return sum_of_lanes(self._vector[0]) + self._single[0]


def _rounded(values: Expr) -> Expr:
    """To the nearest integers, int32."""
    lanes = lanes_of(values)
    shifted = values + splat(ROUNDING, "float32", lanes)
    bits = T.reinterpret("int32" if lanes == 1 else f"int32x{lanes}", shifted)
    return bits - splat(ROUNDING_BITS, "int32", lanes)
