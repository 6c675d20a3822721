"""Mixtures of experts in the decoder graph: a router in standard operators, and one `LutMoe` for all experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from skim_runtime.operators import LUT_MOE

__all__ = ["MixtureOfExperts"]


class MixtureOfExperts:
    """The part of a model of the builder that writes mixtures, as transformers has them.

    The attributes are the builder's.
    """

    activation: str
    io_dtype: ir.DataType
    layernorm_attrs: dict[str, Any]
    make_hidden_state_shape: Callable[..., list[int | str]]
    make_initializer: Callable[..., None]
    make_node: Callable[..., None]
    make_value: Callable[..., Any]

    def get_moe_module(self, layer_id: int, layer: Any) -> Any:
        """The feed-forward network of a layer, be it a mixture or not."""
        return layer.mlp

    def make_moe(self, layer_id: int, moe: Any, root_input: str) -> None:
        """The feed-forward network of a layer of a model with mixtures, some of which may have none."""
        if not hasattr(moe, "experts"):
            self.make_mlp(layer_id, moe, root_input)  # type: ignore[attr-defined]
            return
        name = f"/model/layers.{layer_id}/moe"
        chosen, shares = self._router(name, f"model.layers.{layer_id}.moe.router.weight", moe.gate, root_input)
        output = f"{name}/{LUT_MOE.name}/output_0"
        self.make_experts(f"{name}/{LUT_MOE.name}", moe.experts, moe.gate.top_k, [root_input, chosen, shares], output)
        self.layernorm_attrs["skip_input"] = output

    def make_experts(self, name: str, experts: Any, per_token: int, values: list[str], output: str) -> None:
        """The node of all experts of a layer on tokens, and on the experts and shares that these were given."""
        raise NotImplementedError

    def _router(self, name: str, weight: str, router: Any, root_input: str) -> tuple[str, str]:
        """Which experts tokens are given, `[..., k]`, and with what shares: the likeliest by a softmax over all."""
        count, per_token = len(router.weight), router.top_k
        self.make_initializer(router.weight.T.contiguous(), weight, to=self.io_dtype)
        logits = self._node("MatMul", f"{name}/router/MatMul", [root_input, weight], self.io_dtype, count)
        # In float32 as in transformers: two experts may be nearly as likely.
        cast = self._node("Cast", f"{name}/router/Cast", [logits], ir.DataType.FLOAT, count, to=ir.DataType.FLOAT)
        likelihoods = self._node("Softmax", f"{name}/router/Softmax", [cast], ir.DataType.FLOAT, count, axis=-1)
        top = f"{name}/router/TopK"
        shares, chosen = f"{top}/output_0", f"{top}/output_1"
        inputs = [likelihoods, f"/model/constants/INT64/[{per_token}]"]
        self.make_node("TopK", inputs=inputs, outputs=[shares, chosen], name=top, axis=-1)
        for output, dtype in ((shares, ir.DataType.FLOAT), (chosen, ir.DataType.INT64)):
            self.make_value(output, dtype, shape=self.make_hidden_state_shape(last_dim=per_token))
        if getattr(router, "norm_topk_prob", False):
            inputs = [shares, "/model/constants/INT64/[-1]"]
            total = self._node("ReduceSum", f"{name}/router/ReduceSum", inputs, ir.DataType.FLOAT, 1, keepdims=True)
            shares = self._node("Div", f"{name}/router/Div", [shares, total], ir.DataType.FLOAT, per_token)
        if self.io_dtype != ir.DataType.FLOAT:
            cast = f"{name}/router/shares/Cast"
            shares = self._node("Cast", cast, [shares], self.io_dtype, per_token, to=self.io_dtype)
        return chosen, shares

    def _node(self, op: str, name: str, inputs: list[str], dtype: ir.DataType, last_dim: int, **attributes: Any) -> str:
        """A node with a value for each token; the name of its output."""
        output = f"{name}/output_0"
        self.make_node(op, inputs=inputs, outputs=[output], name=name, **attributes)
        self.make_value(output, dtype, shape=self.make_hidden_state_shape(last_dim=last_dim))
        return output
