"""The graph of Gemma 4."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxruntime_genai.models.builders import Gemma4Model  # type: ignore[import-not-found,unused-ignore]

from .rms_norm import make_rms_norm

__all__ = ["Gemma4"]


class Gemma4(Gemma4Model):  # type: ignore[misc,unused-ignore]
    """Gemma 4, dense: what differs from layer to layer, and what some of its models have beside.

    Sizes of heads differ by the type of a layer. Values are normed; in some layers they are the keys before their norm.
    The last layers may use the keys and values of an earlier one, and every layer may have an input of its own, which
    comes from an embedding of its own and from the token embedding.
    """

    attention_k_eq_v = False  # to the builder, which would compute those keys twice

    def make_attention_init(self, config: Any) -> None:
        """Queries and keys have norms."""
        config.query_pre_attn_scalar = 1  # Gemma 2 reads it, although the scale is transformers' own
        super().make_attention_init(config)

    def layer_head_dim(self, layer_id: int) -> int:
        """Channels of a head."""
        return int(self._layer(layer_id).head_dim)

    def layer_num_kv_heads(self, layer_id: int) -> int:
        """Number of heads of keys and values."""
        return int(self._layer(layer_id).num_key_value_heads)

    def _layer(self, layer_id: int) -> Any:
        return self.context.model.checkpoint.config.per_layer_config[layer_id]

    def _source(self, layer_id: int) -> int:
        """The layer whose keys and values a layer uses: often its own."""
        modes = self.config.kv_sharing_modes
        if modes[layer_id] != "reuse":
            return layer_id
        kind = self.layer_types[layer_id]
        return next(i for i, mode in enumerate(modes) if mode == "store" and self.layer_types[i] == kind)

    def make_cache_names(self, valid_layer_types: list[str], input_format_name: str) -> dict[int, str]:
        """Caches of the layers that have keys and values."""
        names = super().make_cache_names(valid_layer_types, input_format_name)
        return {layer: name for layer, name in names.items() if self._source(layer) == layer}

    def make_key_value_cache_names(self, layer_id: int) -> tuple[str, str, str, str]:
        """The past keys and values, which are another layer's present ones where they are shared, and the present."""
        source = self._source(layer_id)
        past_k, past_v, present_k, present_v = super().make_key_value_cache_names(source)
        return (past_k, past_v, present_k, present_v) if source == layer_id else (present_k, present_v, "", "")

    def make_attention_input_proj(self, layer_id: int, attention: Any, root_input: str, **kwargs: Any) -> None:
        """Queries, keys and normed values."""
        if getattr(attention, "v_proj", None) is not None:
            super().make_attention_input_proj(layer_id, attention, root_input, **kwargs)
            return
        attrs = self.attention_attrs
        attrs["q_path"] = self._projection(layer_id, "q_proj", attention.q_proj, root_input)
        if attention.is_kv_shared_layer:
            attrs["k_path"] = attrs["v_path"] = self._no_keys(self._source(layer_id))
        else:
            attrs["k_path"] = attrs["v_path"] = self._projection(layer_id, "k_proj", attention.k_proj, root_input)
            self.make_v_norm(layer_id)

    def _projection(self, layer_id: int, part: str, linear: Any, root_input: str) -> str:
        name = f"/model/layers.{layer_id}/attn/{part}"
        path = f"{self.make_matmul(linear, f'{name}/MatMul', root_input)}/output_0"
        if linear.bias is None:
            return path
        self.make_add_bias(linear.bias, f"{name}/Add", path)
        return f"{name}/Add/output_0"

    def _no_keys(self, source: int) -> str:
        """Keys of no token, by which GroupQueryAttention knows that the past is all there is."""
        name = f"/model/layers.{source}/attn/no_keys/Slice"
        keys = f"/model/layers.{source}/attn/k_rotary/{self.rope_attrs['op_type']}/output_0"
        none, axis = "/model/constants/INT64/[0]", "/model/constants/INT64/[1]"
        self.make_slice(name, [keys, none, none, axis], self.io_dtype, ["batch_size", 0, self.kv_size])
        return f"{name}/output_0"

    def make_attention_qk_rope_and_norm(self, layer_id: int, attention: Any, **kwargs: Any) -> tuple[str, str]:
        """Norms and rotary embeddings of queries, and of keys that a layer has of its own."""
        if not attention.is_kv_shared_layer:
            names: tuple[str, str] = super().make_attention_qk_rope_and_norm(layer_id, attention, **kwargs)
            return names
        attrs, name = self.attention_attrs, f"/model/layers.{layer_id}/attn"
        normed = self._part_norm(f"{name}/q_norm", attrs["q_path"], attention.q_norm, self.q_size)
        rotary = f"{name}/q_rotary/{self.rope_attrs['op_type']}"
        self.make_rotary_embedding_op(rotary, root_input=normed, position_ids=kwargs["position_ids"])
        attrs["q_path"] = f"{rotary}/output_0"
        return "", ""

    def _part_norm(self, name: str, root_input: str, norm: Any, width: int) -> str:
        """Norms of the parts of rows of some `width`, each part as long as the weight of the norm."""
        size = len(norm.weight)
        shape: list[int | str] = ["batch_size", f"sequence_length * {width // size}", size]
        self.make_reshape(
            f"{name}/Reshape_1", [root_input, f"/model/constants/INT64/[0, -1, {size}]"], self.io_dtype, shape
        )
        normed = self._norm(name, f"{name}/Reshape_1/output_0", norm, shape)
        rows = self.make_hidden_state_shape(last_dim=width)
        self.make_reshape(
            f"{name}/Reshape_2", [normed, f"/model/constants/INT64/[0, -1, {width}]"], self.io_dtype, rows
        )
        return f"{name}/Reshape_2/output_0"

    def _norm(self, name: str, root_input: str, norm: Any, shape: list[int | str]) -> str:
        weight, node = f"{name[1:].replace('/', '.')}.weight", f"{name}/SimplifiedLayerNormalization"
        return make_rms_norm(self, node, root_input, norm, weight, shape)

    def make_embedding(self, embedding: Any) -> None:
        """The token embedding, and the inputs that layers have of their own."""
        if embedding is not self.weights.get_input_embeddings().weight:  # that of layers, which the builder finds, too
            return
        super().make_embedding(embedding)
        if hasattr(self.weights.model, "embed_tokens_per_layer"):
            self._make_layer_inputs(self.weights.model)

    def _make_layer_inputs(self, decoder: Any) -> None:
        """Rows of the embedding of layers, and the projection of those of the token embedding, for all layers."""
        name, size = "/model/layer_inputs", self.config.hidden_size_per_layer_input
        width = self.num_layers * size
        rows = self.make_hidden_state_shape(last_dim=width)
        gathered = self.make_rows(decoder.embed_tokens_per_layer, f"{name}/embedding")
        self.make_value(gathered, self.io_dtype, shape=rows)
        scale = float(decoder.embed_tokens_per_layer.embed_scale)
        gathered = self._scaled(f"{name}/embedding/Mul", gathered, scale, rows)

        states = self._in_io_type(f"{name}/Cast", self.layernorm_attrs["root_input"])
        product = (
            f"{self.make_matmul(decoder.per_layer_model_projection, f'{name}/projection/MatMul', states)}/output_0"
        )
        product = self._scaled(f"{name}/projection/Mul", product, decoder.per_layer_model_projection_scale, rows)
        product = self._part_norm(f"{name}/projection_norm", product, decoder.per_layer_projection_norm, width)

        self.make_add(f"{name}/Add", [product, gathered], self.io_dtype, rows)
        both = self._scaled(f"{name}/Mul", f"{name}/Add/output_0", decoder.per_layer_input_scale, rows)
        self.make_split(
            f"{name}/Split",
            inputs=[both, f"/model/constants/INT64/{[size] * self.num_layers}"],
            outputs=[self._layer_input(layer) for layer in range(self.num_layers)],
            dtypes=[self.io_dtype] * self.num_layers,
            shapes=[self.make_hidden_state_shape(last_dim=size)] * self.num_layers,
        )

    @staticmethod
    def _layer_input(layer_id: int) -> str:
        return f"/model/layer_inputs/Split/output_{layer_id}"

    def make_layer(self, layer_id: int, layer: Any) -> None:
        """Attention and feed-forward network, the layer's own input, and the scale of all that."""
        self.intermediate_size = layer.mlp.intermediate_size  # twice as large in some
        super(Gemma4Model, self).make_layer(layer_id, layer)  # the builder's Gemma 4 scales before the input is added
        if hasattr(layer, "per_layer_input_gate"):
            self._add_layer_input(layer_id, layer)
        attrs, shape = self.layernorm_attrs, self.make_hidden_state_shape()
        for part in ("root_input", "skip_input"):  # their sum is what leaves the layer
            name = f"/model/layers.{layer_id}/layer_scalar/{part}/Mul"
            attrs[part] = self._scaled(name, attrs[part], float(layer.layer_scalar), shape)

    def _add_layer_input(self, layer_id: int, layer: Any) -> None:
        """Residual + norm(projection(gelu(gate(residual)) * the layer's input))."""
        name, attrs, rows = (
            f"/model/layers.{layer_id}/layer_input",
            self.layernorm_attrs,
            self.make_hidden_state_shape(),
        )
        narrow = self.make_hidden_state_shape(last_dim=self.config.hidden_size_per_layer_input)
        dtype = self.values[attrs["root_input"]].dtype
        self.make_add(f"{name}/Add", [attrs["root_input"], attrs["skip_input"]], dtype, rows)
        attrs["root_input"] = f"{name}/Add/output_0"

        states = self._in_io_type(f"{name}/Cast", attrs["root_input"])
        gate = self.make_matmul(layer.per_layer_input_gate, f"{name}/gate/MatMul", states)
        gelu = f"{name}/gate/Gelu"
        self.make_node("Gelu", inputs=[f"{gate}/output_0"], outputs=[f"{gelu}/output_0"], name=gelu, approximate="tanh")
        self.make_value(f"{gelu}/output_0", self.io_dtype, shape=narrow)
        self.make_mul(f"{name}/Mul", [f"{gelu}/output_0", self._layer_input(layer_id)], self.io_dtype, narrow)
        product = self.make_matmul(layer.per_layer_projection, f"{name}/projection/MatMul", f"{name}/Mul/output_0")
        norm = layer.post_per_layer_input_norm
        normed = self._norm(f"{name}/norm", f"{product}/output_0", norm, rows)
        attrs["skip_input"] = self._cast(f"{name}/norm/Cast", normed, dtype, rows)

    def _scaled(self, name: str, value: str, scale: float, shape: list[int | str]) -> str:
        dtype = self.values[value].dtype
        self.make_mul(name, [value, f"/model/constants/{self.to_str_dtype(dtype)}/{scale}"], dtype, shape)
        return f"{name}/output_0"

    def _in_io_type(self, name: str, value: str) -> str:
        """Hidden states as products take them: residuals are float32 in any case."""
        return self._cast(name, value, self.io_dtype, self.make_hidden_state_shape())

    def _cast(self, name: str, value: str, dtype: ir.DataType, shape: list[int | str]) -> str:
        if self.values[value].dtype == dtype:
            return value
        self.make_cast(name, value, dtype, shape)
        return f"{name}/output_0"
