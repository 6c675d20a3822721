"""Attention as transformers has it, in the model builder's graph.

Scales, rotary tables and where they are applied come from transformers' own modules rather than from a second reading
of config.json.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from onnx_ir.tensor_adapters import to_torch_dtype

from skim_runtime.rotary_switch import ROTARY_SWITCH

from .rotary import is_long_rope, original_positions, rotary_tables, table_kind

__all__ = ["AttentionOfTransformers"]


class AttentionOfTransformers:
    """Goes in front of one of the builder's model classes, whose attributes these are."""

    config: Any
    model: ir.Model
    weights: Any
    values: dict[str, ir.Value]
    io_dtype: ir.DataType
    input_names: dict[str, str]
    layer_id: int
    layer_types: list[str]
    context_length: int
    q_size: int
    kv_size: int
    attention_attrs: dict[str, Any]
    make_add: Callable[..., None]
    make_cast: Callable[..., None]
    make_gather: Callable[..., None]
    make_greater: Callable[..., None]
    make_initializer: Callable[..., None]
    make_mul: Callable[..., None]
    make_shape: Callable[..., None]
    make_split: Callable[..., None]
    make_hidden_state_shape: Callable[..., list[int | str]]

    def make_rope_init(self, config: Any) -> None:
        """Nothing: the tables are transformers' own."""

    def is_fused_rope_supported(self) -> bool:
        """Not where positions choose between two tables."""
        return super().is_fused_rope_supported() and not is_long_rope(self.config)  # type: ignore[misc]

    def make_rotary_embedding_multi_cache(self, **_: Any) -> None:
        """Nothing: tables are made when the first layer asks for them."""

    def make_rotary_embedding_caches(self, **_: Any) -> tuple[str, str]:
        """The tables of the layer at hand, made once."""
        layer_type = self.layer_types[self.layer_id]
        kind = table_kind(self.config, layer_type).removesuffix("_attention")
        names = tuple(f"{table}_cache_{kind}" if kind else f"{table}_cache" for table in ("cos", "sin"))
        if names[0] not in self.model.graph.initializers:
            tables = rotary_tables(self.weights, layer_type, self.context_length)
            for name, table in zip(names, tables, strict=True):
                self.make_initializer(table.to(to_torch_dtype(self.io_dtype)), name)
        return names[0], names[1]

    def make_attention(self, layer_id: int, attention: Any, root_input: str, **kwargs: Any) -> None:
        """Attention with the scale that transformers has, rotated where transformers rotates."""
        attrs = self.attention_attrs
        before = attrs["rope"], attrs["use_rope_in_attn"]
        attrs["scale"] = getattr(attention, "scaling", attrs["scale"])
        if is_long_rope(self.config):
            kwargs["position_ids"] = self._table_rows()
        if not getattr(attention, "use_rope", True):
            attrs["rope"] = attrs["use_rope_in_attn"] = False
        super().make_attention(layer_id, attention, root_input, **kwargs)  # type: ignore[misc]
        attrs["rope"], attrs["use_rope_in_attn"] = before

    def _table_rows(self) -> str:
        """Positions as rows of two tables, one below the other: a text beyond the original context uses the second."""
        name, positions = "/model/table_rows", self.input_names["position_ids"]
        rows = f"{name}/Add/output_0"
        if rows in self.values:
            return rows
        switch, kind, shape = original_positions(self.config), ir.DataType.INT64, ["batch_size", "sequence_length"]
        self.model.metadata_props[ROTARY_SWITCH] = str(switch)
        original = f"/model/constants/INT64/{switch}"
        self.make_shape(f"{name}/Shape", self.input_names["attention_mask"], [2])
        self.make_gather(f"{name}/Gather", [f"{name}/Shape/output_0", "/model/constants/INT64/1"], kind, [], axis=0)
        self.make_greater(f"{name}/Greater", [f"{name}/Gather/output_0", original], [])
        self.make_cast(f"{name}/Cast", f"{name}/Greater/output_0", kind, [])
        self.make_mul(f"{name}/Mul", [f"{name}/Cast/output_0", original], kind, [])
        self.make_add(f"{name}/Add", [positions, f"{name}/Mul/output_0"], kind, shape)
        return rows

    def make_attention_qk_rope_and_norm(self, layer_id: int, attention: Any, **kwargs: Any) -> Any:
        """Norms and rotary embeddings of queries and keys."""
        attrs = self.attention_attrs
        if attrs["use_packed_matmul"] and attrs["rope"] and not attrs["use_rope_in_attn"] and not attrs["q_norm"]:
            self._split_qkv(layer_id)
        return super().make_attention_qk_rope_and_norm(layer_id, attention, **kwargs)  # type: ignore[misc]

    def _split_qkv(self, layer_id: int) -> None:
        """Take a fused product apart, for rotary embeddings that are nodes of their own."""
        name, sizes = f"/model/layers.{layer_id}/attn/qkv_proj/Split", [self.q_size, self.kv_size, self.kv_size]
        outputs = [f"{name}/output_{i}" for i in range(3)]
        self.make_split(
            name,
            inputs=[self.attention_attrs["q_path"], f"/model/constants/INT64/{sizes}"],
            outputs=outputs,
            dtypes=[self.io_dtype] * 3,
            shapes=[self.make_hidden_state_shape(last_dim=size) for size in sizes],
        )
        for path, output in zip(("q_path", "k_path", "v_path"), outputs, strict=True):
            self.attention_attrs[path] = output
