"""Attention over a key/value cache as TIR functions.

They follow onnxruntime's GroupQueryAttention for batch size 1, packed queries, keys and values, and a cache whose past
and present are the same memory: `[1, KV heads, capacity, head size]`, of which the first tokens are filled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from relax_model.vectors import dot, exponential
from skim_export.bundle.kernels.tir import Buffer, Expr, load, local, store, vector_type

__all__ = ["Attention", "append_function", "attention_function"]

KEYS = 32  # whose scores are known before their values are added up
QUERIES = 8  # of one head that go over them, one after the other


@dataclass(frozen=True)
class Attention:
    """The constants of an attention layer.

    Attributes:
        heads: query heads, H.
        kv_heads: key/value heads, G.
        head_size: channels of a head, D.
        rotary_half: half of the channels that are rotated, the first ones of a head; 0 for none.
        interleaved: whether channels 2i and 2i + 1 are rotated together, or else i and rotary_half + i.
        scale: factor of the scores.
        window: newest tokens that a token attends to, itself included; 0 or less for all.
        softcap: bound of the scores; 0 for none.
    """

    heads: int
    kv_heads: int
    head_size: int
    rotary_half: int
    interleaved: bool
    scale: float
    window: int
    softcap: float


def append_function(layer: Attention) -> tirx.PrimFunc:
    """Writes the keys, rotated, and the values of new tokens into the cache, behind those of the past.

    Arguments: those of `_Inputs`; the caches of keys and values are written in place.
    """
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_name("append_to_cache")
        inputs = _Inputs(layer)
        key, value = inputs.key, inputs.value
        with T.serial(0, inputs.tokens) as s, T.serial(0, layer.kv_heads) as g:
            position = inputs.past + s
            _rotate(
                layer,
                inputs,
                lambda i: inputs.qkv[0, s, (layer.heads + g) * layer.head_size + i],
                position,
                lambda i, rotated: T.buffer_store(key, rotated, [0, g, position, i]),
            )
            with T.serial(0, layer.head_size) as i:
                channel = (layer.heads + layer.kv_heads + g) * layer.head_size + i
                T.buffer_store(value, inputs.qkv[0, s, channel], [0, g, position, i])
    return builder.get()


def attention_function(layer: Attention) -> tirx.PrimFunc:
    """Softmax(scale * rotated queries * keys) * values over the cache, new tokens included.

    Arguments: those of `_Inputs`, then the output `[1, S, H * D]`.
    """
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_name("attention")
        inputs = _Inputs(layer)
        y = T.arg("y", T.buffer((1, inputs.tokens, layer.heads * layer.head_size), "float32"))
        tiles = tirx.ceildiv(inputs.tokens, QUERIES)
        with T.parallel(0, layer.heads * tiles) as task:
            first_token = T.Bind(task % tiles * QUERIES)
            queries = T.Bind(tirx.min(inputs.tokens - first_token, QUERIES))
            position = T.Bind(inputs.past + first_token)  # of the first query
            tile = _Tile(layer, inputs, task // tiles)
            with T.serial(0, queries) as q:
                tile.load(q, first_token + q)
            # All queries go over a block of keys while these are in the CPU's cache.
            start = T.Bind(_oldest_key(layer, position))
            with T.serial(0, tirx.ceildiv(position + queries - start, KEYS)) as block, T.serial(0, queries) as q:
                begin = start + block * KEYS
                first = T.Bind(tirx.max(begin, _oldest_key(layer, position + q)))
                # None or less, where all of the block are newer than the query.
                tile.attend(q, first, T.Bind(tirx.min(begin + KEYS, position + q + 1) - first))
            with T.serial(0, queries) as q:
                tile.store(q, y, first_token + q)
    return builder.get()


def _oldest_key(layer: Attention, position: Expr) -> Expr:
    """Position of the oldest key that the query at a position attends to."""
    return tirx.max(position + 1 - layer.window, 0) if layer.window > 0 else tirx.const(0, "int64")


class _Tile:
    """Queries of one head and what they have summed up so far: softmax that sees keys block by block."""

    def __init__(self, layer: Attention, inputs: _Inputs, head: Expr) -> None:
        self._layer, self._inputs, self._head = layer, inputs, head
        self._kv_head = head // (layer.heads // layer.kv_heads)
        self._query, self._total = (local("float32", QUERIES * layer.head_size) for _ in range(2))
        self._maximum, self._denominator = (local("float32", QUERIES) for _ in range(2))

    def load(self, q: Expr, token: Expr) -> None:
        """Query `q` is a token's; it has seen no keys."""
        D = self._layer.head_size
        _rotate(
            self._layer,
            self._inputs,
            lambda i: self._inputs.qkv[0, token, self._head * D + i],
            self._inputs.past + token,
            lambda i, rotated: store(self._query, q * D + i, rotated * T.float32(self._layer.scale)),
        )
        store(self._maximum, q, tirx.min_value("float32"))
        store(self._denominator, q, T.float32(0))
        with T.serial(0, D) as i:
            store(self._total, q * D + i, T.float32(0))

    def attend(self, q: Expr, first: Expr, keys: Expr) -> None:
        """Query `q` sees some keys. When its maximum grows, what it has summed up is scaled down."""
        D, softcap = self._layer.head_size, self._layer.softcap
        key, value = self._inputs.key, self._inputs.value
        scores, new_maximum = local("float32", KEYS), local("float32")
        store(new_maximum, 0, self._maximum[q])
        with T.serial(0, keys) as j:
            score = dot(
                lambda i, n: load(self._query, q * D + i, n),
                lambda i, n: key.vload([0, self._kv_head, first + j, i], vector_type("float32", n)),
                D,
            )
            if softcap > 0:
                score = T.float32(softcap) * T.tanh(score / T.float32(softcap))
            store(scores, j, score)
            store(new_maximum, 0, tirx.max(new_maximum[0], scores[j]))
        shrink = T.Bind(exponential(self._maximum[q] - new_maximum[0]))
        store(self._maximum, q, new_maximum[0])
        store(self._denominator, q, self._denominator[q] * shrink)
        with T.serial(0, D) as i:
            store(self._total, q * D + i, self._total[q * D + i] * shrink)
        with T.serial(0, keys) as j:  # a loop of its own: this one becomes vectors
            store(scores, j, exponential(scores[j] - new_maximum[0]))
        with T.serial(0, keys) as j:
            store(self._denominator, q, self._denominator[q] + scores[j])
            with T.serial(0, D) as i:
                weighted = scores[j] * value[0, self._kv_head, first + j, i]
                store(self._total, q * D + i, self._total[q * D + i] + weighted)

    def store(self, q: Expr, y: Buffer, token: Expr) -> None:
        """Write the result of query `q`."""
        D = self._layer.head_size
        with T.serial(0, D) as i:
            result = self._total[q * D + i] / self._denominator[q]
            T.buffer_store(y, result, [0, token, self._head * D + i])


class _Inputs:
    """The arguments that both functions begin with.

    Attributes:
        qkv: queries, keys and values of the new tokens `[1, S, (H + 2G) * D]`.
        cos: cosines of the rotation `[positions, rotary_half]`; no argument without rotation.
        sin: its sines; the same.
        key: cache of keys `[1, G, capacity, D]`.
        value: cache of values.
        tokens: S.
        past: tokens before the new ones.
    """

    def __init__(self, layer: Attention) -> None:
        T.func_attr({"tirx.noalias": True})
        H, G, D = layer.heads, layer.kv_heads, layer.head_size
        self.tokens, capacity, positions = (tirx.Var(n, "int64") for n in ("tokens", "capacity", "positions"))
        rotary = (positions, layer.rotary_half)
        cache = (1, G, capacity, D)
        self.qkv = T.arg("qkv", T.buffer((1, self.tokens, (H + 2 * G) * D), "float32"))
        last = T.arg("last", T.buffer((1,), "int32"))
        if layer.rotary_half:
            self.cos = T.arg("cos", T.buffer(rotary, "float32"))
            self.sin = T.arg("sin", T.buffer(rotary, "float32"))
        self.key = T.arg("key", T.buffer(cache, "float32"))
        self.value = T.arg("value", T.buffer(cache, "float32"))
        self.past = T.Cast("int64", last[0]) + 1 - self.tokens


def _rotate(
    layer: Attention,
    inputs: _Inputs,
    head: Callable[[Expr], Expr],
    position: Expr,
    store: Callable[[Expr, Expr], None],
) -> None:
    """Store the rotary embedding of the channels head(0), head(1), ... of one head at a position."""
    half = layer.rotary_half
    step, partner = (2, 1) if layer.interleaved else (1, half)
    if half:
        with T.serial(0, half) as i:
            cos, sin = inputs.cos[position, i], inputs.sin[position, i]
            real, imaginary = i * step, i * step + partner
            store(real, head(real) * cos - head(imaginary) * sin)
            store(imaginary, head(imaginary) * cos + head(real) * sin)
    with T.serial(2 * half, layer.head_size) as i:
        store(i, head(i))
