"""What the operators of our decoders become in Relax.

A converter takes a `Node` and returns an expression for each of its outputs, None for those that it does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax

from relax_model.attention import Attention, append_function, attention_function
from relax_model.elementwise import rms_norm_function, silu_product_function, skip_rms_norm_function
from relax_model.node import Node
from relax_model.product import lut_gather, lut_product
from skim_runtime.operators import DOMAIN, LUT_GATHER, LUT_MATMUL, LUT_SWIGLU

__all__ = ["CONVERTERS"]

Converter = Callable[[Node], list[Any]]


def _lut_matmul(node: Node) -> list[Any]:
    (packed,) = node.operands
    return [lut_product(node.builder, node.kernels, packed, node.tokens(0))]


def _lut_swiglu(node: Node) -> list[Any]:
    x = node.tokens(0)
    gate, up = (lut_product(node.builder, node.kernels, packed, x) for packed in node.operands)
    function = node.builder.add_func(silu_product_function(), "silu_product")
    return [node.builder.emit(relax.call_tir(function, [gate, up], gate.ty))]


def _lut_gather(node: Node) -> list[Any]:
    node.expect("dtype", 1, None)
    (packed,) = node.operands
    return [lut_gather(node.builder, packed, node.input(0))]


def _rms_norm(node: Node) -> list[Any]:
    node.expect("axis", -1, -1)
    node.expect("stash_type", 1, 1)
    x, weight = node.tokens(0), node.input(1)
    function = rms_norm_function(int(weight.ty.shape[0]), node.attribute("epsilon", 1e-5))
    return [node.builder.emit(relax.call_tir(node.builder.add_func(function, "rms_norm"), [x, weight], x.ty))]


def _skip_rms_norm(node: Node) -> list[Any]:
    x, skip, weight = node.tokens(0), node.tokens(1), node.input(2)
    function = skip_rms_norm_function(int(weight.ty.shape[0]), node.attribute("epsilon", 1e-12))
    variable = node.builder.add_func(function, "skip_rms_norm")
    both = node.builder.emit(relax.call_tir(variable, [x, skip, weight], [x.ty, x.ty]))
    return [node.builder.emit(both[0]), None, None, node.builder.emit(both[1])]


def _group_query_attention(node: Node) -> list[Any]:
    """Its cache is updated in place: `past_key` and `present_key` are the same memory, and so are the values."""
    qkv = node.tokens(0)
    if node.has_input(1):
        apart = [qkv, node.tokens(1), node.tokens(2)]
        qkv = node.builder.emit(relax.op.concat(apart, axis=2))
    key, value, last = node.input(3), node.input(4), node.input(5)
    node.ignore_input(6)  # total_sequence_length: it follows from the index of the last token
    tables = [node.input(7), node.input(8)] if node.attribute("do_rotary", 0) else []
    heads, kv_heads = node.attribute("num_heads"), node.attribute("kv_num_heads")
    head_size = int(qkv.ty.shape[2]) // (heads + 2 * kv_heads)
    layer = Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        rotary_half=int(tables[0].ty.shape[1]) if tables else 0,
        interleaved=bool(node.attribute("rotary_interleaved", 0)),
        scale=node.attribute("scale", 0.0) or head_size**-0.5,
        window=node.attribute("local_window_size", -1),
        softcap=node.attribute("softcap", 0.0),
    )
    append = node.builder.add_func(append_function(layer), "append_to_cache")
    attend = node.builder.add_func(attention_function(layer), "attention")
    arguments = [qkv, last, *tables]
    places = [len(arguments), len(arguments) + 1]
    in_place = relax.op.call_tir_inplace(append, [*arguments, key, value], places, [key.ty, value.ty])
    cache = node.builder.emit(in_place)
    present = [node.builder.emit(cache[0]), node.builder.emit(cache[1])]
    y = relax.TensorType([1, qkv.ty.shape[1], heads * head_size], "float32")
    return [node.builder.emit(relax.call_tir(attend, [*arguments, *present], y)), *present]


CONVERTERS: dict[tuple[str, str], Converter] = {
    (DOMAIN, LUT_GATHER.name): _lut_gather,
    (DOMAIN, LUT_MATMUL.name): _lut_matmul,
    (DOMAIN, LUT_SWIGLU.name): _lut_swiglu,
    ("", "SimplifiedLayerNormalization"): _rms_norm,  # onnxruntime's own, in spite of its domain
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_rms_norm,
    ("com.microsoft", "GroupQueryAttention"): _group_query_attention,
}
