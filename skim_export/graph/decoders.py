"""Graphs of architectures that the model builder has no class for, made of its parts."""

from __future__ import annotations

from typing import Any

import torch
from onnxruntime_genai.models.builders import (  # type: ignore[import-not-found,unused-ignore]
    GraniteModel,
    MistralModel,
    Qwen35TextModel,
)

from .gemma4 import Gemma4
from .rms_norm import make_rms_norm

__all__ = ["Gemma4", "GraniteMoe", "Ministral3", "Olmo2", "Olmoe", "Qwen35Text"]


class Olmo2(MistralModel):  # type: ignore[misc,unused-ignore]
    """OLMo 2 and 3: norms behind attention and feed-forward network, and over all heads of queries and of keys.

    The blocks are those of "2 OLMo 2 Furious" (arXiv 2501.00656, section 2.1).
    """

    def make_attention_init(self, config: Any) -> None:
        """Queries and keys have norms."""
        self.attention_attrs["q_norm"] = self.attention_attrs["k_norm"] = True
        super().make_attention_init(config)

    def is_fused_qk_norm_gqa_supported(self) -> bool:
        """GroupQueryAttention has norms of single heads only."""
        return False

    def make_qk_norm(self, layer_id: int, attention: Any) -> None:
        """Norms of all heads' queries together, and of all keys."""
        for part, norm, size in (("q", attention.q_norm, self.q_size), ("k", attention.k_norm, self.kv_size)):
            name = f"/model/layers.{layer_id}/attn/{part}_norm/SimplifiedLayerNormalization"
            weight = f"model.layers.{layer_id}.attn.{part}_norm.layernorm.weight"
            shape = self.make_hidden_state_shape(last_dim=size)
            normed = make_rms_norm(self, name, self.attention_attrs[f"{part}_path"], norm, weight, shape)
            self.attention_attrs[f"{part}_path"] = normed

    def make_layer(self, layer_id: int, layer: Any) -> None:
        """Residual + norm(attention), then residual + norm(feed-forward network)."""
        attrs = self.layernorm_attrs
        self.make_attention(layer_id, layer.self_attn, root_input=attrs["root_input"])
        self._add_normed(layer_id, layer.post_attention_layernorm, "post_attention")
        self.make_mlp(layer_id, layer.mlp, root_input=attrs["root_input"])
        if layer_id == self.num_layers - 1:  # the last norm adds what is left
            attrs["skip_input"] = self._normed(layer_id, layer.post_feedforward_layernorm, "post_feedforward")
            attrs["last_layernorm"] = True
        else:
            self._add_normed(layer_id, layer.post_feedforward_layernorm, "post_feedforward")

    def _normed(self, layer_id: int, norm: Any, location: str) -> str:
        weight = f"model.layers.{layer_id}.{location}_layernorm.weight"
        name = f"/model/layers.{layer_id}/{location}_layernorm/LayerNorm"
        shape = self.make_hidden_state_shape()
        return make_rms_norm(self, name, self.layernorm_attrs["skip_input"], norm, weight, shape)

    def _add_normed(self, layer_id: int, norm: Any, location: str) -> None:
        normed = self._normed(layer_id, norm, location)
        name = f"/model/layers.{layer_id}/{location}_residual/Add"
        inputs = [self.layernorm_attrs["root_input"], normed]
        self.make_add(name, inputs, dtype=self.io_dtype, shape=self.make_hidden_state_shape())
        self.layernorm_attrs["root_input"] = f"{name}/output_0"


class Olmoe(Olmo2):
    """OLMoE (arXiv 2409.02060): norms over all heads of queries and of keys, the rest as in Mistral's models."""

    def make_layer(self, layer_id: int, layer: Any) -> None:
        """Residual + attention(norm), then residual + experts(norm)."""
        MistralModel.make_layer(self, layer_id, layer)


class GraniteMoe(GraniteModel):  # type: ignore[misc,unused-ignore]
    """Granite 3 with mixtures in place of feed-forward networks."""

    def make_layer(self, layer_id: int, layer: Any) -> None:
        """As Granite's, with the mixture where that has a feed-forward network."""
        layer.mlp = layer.block_sparse_moe
        super().make_layer(layer_id, layer)

    def make_mlp(self, layer_id: int, mlp: Any, root_input: str) -> None:
        """A mixture."""
        self.make_moe(layer_id, mlp, root_input)


class Ministral3(MistralModel):  # type: ignore[misc,unused-ignore]
    """Ministral 3: queries grow with their position, by a step at every multiple of the original context."""

    def is_fused_rope_supported(self) -> bool:
        """Positions are an input, to scale queries by."""
        return False

    def make_attention_qk_rope_and_norm(self, layer_id: int, attention: Any, **kwargs: Any) -> Any:
        """Rotary embeddings, then queries times the scale of their position."""
        names = super().make_attention_qk_rope_and_norm(layer_id, attention, **kwargs)
        table, scale = "query_scale", f"/model/layers.{layer_id}/attn/query_scale"
        rope = attention.config.rope_parameters
        if table not in self.model.graph.initializers:
            steps = torch.arange(self.context_length) // rope["original_max_position_embeddings"]
            values = 1 + rope["llama_4_scaling_beta"] * torch.log(1 + steps.float())
            self.make_initializer(values[:, None], table, to=self.io_dtype)
        shape = self.make_hidden_state_shape(last_dim=1)
        self.make_gather(f"{scale}/Gather", [table, self.input_names["position_ids"]], self.io_dtype, shape, axis=0)
        inputs = [self.attention_attrs["q_path"], f"{scale}/Gather/output_0"]
        self.make_mul(f"{scale}/Mul", inputs, self.io_dtype, self.make_hidden_state_shape(last_dim=self.q_size))
        self.attention_attrs["q_path"] = f"{scale}/Mul/output_0"
        return names


class Qwen35Text(Qwen35TextModel):  # type: ignore[misc,unused-ignore]
    """Qwen 3.5 without images: the three positions of a token are one, so that GroupQueryAttention can rotate."""

    def is_fused_rope_supported(self) -> bool:
        """As for any text model."""
        return bool(self.ep != "dml")
