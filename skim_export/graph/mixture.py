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

    io_dtype: ir.DataType
    layernorm_attrs: dict[str, Any]
    make_hidden_state_shape: Callable[..., list[int | str]]
    make_initializer: Callable[..., None]
    make_matmul: Callable[..., str]
    make_node: Callable[..., None]
    make_value: Callable[..., Any]
    mlp_attrs: dict[str, Any]
    router: str | None  # see `Declaration`

    def get_moe_module(self, layer_id: int, layer: Any) -> Any:
        """The feed-forward network of a layer, be it a mixture or not."""
        return layer.mlp

    def make_moe(self, layer_id: int, moe: Any, root_input: str) -> None:
        """The feed-forward network of a layer of a model with mixtures, some of which may have none."""
        if not hasattr(moe, "experts"):
            self.make_mlp(layer_id, moe, root_input)  # type: ignore[attr-defined]
            return
        name = f"/model/layers.{layer_id}/moe"
        router = moe.gate if hasattr(moe, "gate") else moe.router
        bias = getattr(moe, "expert_bias", None)
        chosen, shares = self._route(f"{name}/router", f"model.layers.{layer_id}.moe", router, bias, root_input)
        output = f"{name}/{LUT_MOE.name}/output_0"
        self.make_experts(f"{name}/{LUT_MOE.name}", moe.experts, router.top_k, [root_input, chosen, shares], output)
        if hasattr(moe, "shared_expert"):
            shared = self._shared_expert(layer_id, moe, root_input)
            output = self._node("Add", f"{name}/Add", [output, shared], self.io_dtype)
        self.layernorm_attrs["skip_input"] = output

    def make_experts(self, name: str, experts: Any, per_token: int, values: list[str], output: str) -> None:
        """The node of all experts of a layer on tokens, and on the experts and shares that these were given."""
        raise NotImplementedError

    def _shared_expert(self, layer_id: int, moe: Any, root_input: str) -> str:
        """An expert for all tokens, with a share between 0 and 1."""
        self.make_mlp_proj(layer_id, moe.shared_expert, root_input)  # type: ignore[attr-defined]
        name = f"/model/layers.{layer_id}/shared_expert_gate"
        logit = f"{self.make_matmul(moe.shared_expert_gate, f'{name}/MatMul', root_input)}/output_0"
        share = self._node("Sigmoid", f"{name}/Sigmoid", [logit], self.io_dtype, 1)
        return self._node("Mul", f"{name}/Mul", [self.mlp_attrs["output_0"], share], self.io_dtype)

    def _route(self, name: str, tensors: str, router: Any, bias: Any, root_input: str) -> tuple[str, str]:
        """Which experts tokens are given, and with what shares, both `[..., k]`.

        All of it is in float32, as in transformers, but for the product: two experts may be nearly as likely.

        Args:
            name: of nodes.
            tensors: beginning of the names of initializers.
            router: a module with the weight of a linear layer, and perhaps its bias.
            bias: what decides beside the scores, but has no share; None if nothing does.
            root_input: the tokens.
        """
        floats, (count, per_token) = ir.DataType.FLOAT, (len(router.weight), router.top_k)
        logits = self._logits(name, f"{tensors}.router", router, root_input)
        if self.router == "softmax of chosen":
            wanted, chosen = self._top(f"{name}/TopK", logits, per_token)
            shares = self._node("Softmax", f"{name}/Softmax", [wanted], floats, per_token, axis=-1)
            return chosen, self._rounded(f"{name}/shares", shares, per_token)
        if self.router == "sigmoid":  # written out: onnxruntime's is off by 6e-8, which is much of a small score
            negative = self._node("Neg", f"{name}/Neg", [logits], floats, count)
            power = self._node("Exp", f"{name}/Exp", [negative], floats, count)
            below = self._node("Add", f"{name}/Exp/Add", [power, "/model/constants/FLOAT/1.0"], floats, count)
            scores = self._node("Reciprocal", f"{name}/Reciprocal", [below], floats, count)
        else:
            scores = self._node("Softmax", f"{name}/Softmax", [logits], floats, count, axis=-1)
        wanted = scores
        if bias is not None:
            self.make_initializer(bias, f"{tensors}.expert_bias", to=floats)
            wanted = self._node("Add", f"{name}/Add", [scores, f"{tensors}.expert_bias"], floats, count)
        shares, chosen = self._top(f"{name}/TopK", wanted, per_token)
        if wanted != scores:
            gather = f"{name}/GatherElements"
            shares = self._node("GatherElements", gather, [scores, chosen], floats, per_token, axis=-1)
        if getattr(router, "norm_topk_prob", True):
            inputs = [shares, "/model/constants/INT64/[-1]"]
            total = self._node("ReduceSum", f"{name}/ReduceSum", inputs, floats, 1, keepdims=True)
            if self.router == "sigmoid":  # they may all be 0
                inputs = [total, "/model/constants/FLOAT/1e-06"]
                total = self._node("Add", f"{name}/ReduceSum/Add", inputs, floats, 1)
            shares = self._node("Div", f"{name}/Div", [shares, total], floats, per_token)
        if (scale := getattr(router, "routed_scaling_factor", 1.0)) != 1:
            inputs = [shares, f"/model/constants/FLOAT/{float(scale)}"]
            shares = self._node("Mul", f"{name}/Mul", inputs, floats, per_token)
        return chosen, self._rounded(f"{name}/shares", shares, per_token)

    def _logits(self, name: str, tensors: str, router: Any, root_input: str) -> str:
        """The scores of all experts, float32."""
        count, floats = len(router.weight), ir.DataType.FLOAT
        self.make_initializer(router.weight.T.contiguous(), f"{tensors}.weight", to=self.io_dtype)
        logits = self._node("MatMul", f"{name}/MatMul", [root_input, f"{tensors}.weight"], self.io_dtype, count)
        if self.io_dtype != floats:
            logits = self._node("Cast", f"{name}/Cast", [logits], floats, count, to=floats)
        if (bias := getattr(router, "bias", None)) is not None:
            self.make_initializer(bias, f"{tensors}.bias", to=floats)
            logits = self._node("Add", f"{name}/MatMul/Add", [logits, f"{tensors}.bias"], floats, count)
        return logits

    def _rounded(self, name: str, values: str, last_dim: int) -> str:
        """Values in float32 in the type that the graph has."""
        if self.io_dtype == ir.DataType.FLOAT:
            return values
        return self._node("Cast", f"{name}/Cast", [values], self.io_dtype, last_dim, to=self.io_dtype)

    def _top(self, name: str, scores: str, count: int) -> tuple[str, str]:
        """The highest scores of each token, and whose they are."""
        values, places = f"{name}/output_0", f"{name}/output_1"
        self.make_node(
            "TopK", inputs=[scores, f"/model/constants/INT64/[{count}]"], outputs=[values, places], name=name
        )
        for output, dtype in ((values, ir.DataType.FLOAT), (places, ir.DataType.INT64)):
            self.make_value(output, dtype, shape=self.make_hidden_state_shape(last_dim=count))
        return values, places

    def _node(
        self, op: str, name: str, inputs: list[str], dtype: ir.DataType, last_dim: int | None = None, **attributes: Any
    ) -> str:
        """A node with so many values for each token, by default the hidden state's; the name of its output."""
        output = f"{name}/output_0"
        self.make_node(op, inputs=inputs, outputs=[output], name=name, **attributes)
        shape = self.make_hidden_state_shape() if last_dim is None else self.make_hidden_state_shape(last_dim=last_dim)
        self.make_value(output, dtype, shape=shape)
        return output
