"""What goes in front of the model builder's classes: nodes on packed weights.

Linear layers and the embedding become `LutMatMul` and `LutGather` nodes; gate and up of a feed-forward network gated by
SiLU become one `LutSwiglu` node. Layers that are excluded from all that become `MatMul` and `Gather` nodes on floats.
The weights of linear layers are read one layer at a time when the graph is written, so memory holds the rest only. A
node finds its weights by the module that it stands for, so that architectures may name their modules as they like.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor, to_torch_dtype

from skim_export.checkpoint import EXPERT_PARTS, Linear, Member, Model, linear_bias, linear_weight, skeleton
from skim_export.packed import CLASSES, PackedLinear
from skim_runtime.errors import UserError
from skim_runtime.operators import (
    CLAMPED_SWIGLU,
    DOMAIN,
    LUT_GATHER,
    LUT_MATMUL,
    LUT_MOE,
    LUT_SWIGLU,
    SWIGLU,
    Operator,
    tensor_names,
)

from .attention import AttentionOfTransformers
from .mixture import MixtureOfExperts

__all__ = ["LIBRARY_NAME", "Context", "PackedModel"]

LIBRARY_NAME = "libskim_ops.so"
SILU = ("silu", "swish")


@dataclass(frozen=True)
class Context:
    """What a model of the builder gets to know of the packed weights, and what it finds out.

    Attributes:
        model: what is not packed comes from its checkpoint.
        weights: returns the packed linear of a name.
        accuracy_level: of the products.
        with_library: whether genai_config.json names the operator library.
        classes: the row classes of the linears so far.
        codebooks: the types of their codebooks.
        operators: what the nodes on them are.
    """

    model: Model
    weights: Callable[[str], PackedLinear]
    accuracy_level: int
    with_library: bool
    classes: set[int] = field(default_factory=set)
    codebooks: set[str] = field(default_factory=set)
    operators: set[Operator] = field(default_factory=set)


class PackedModel(MixtureOfExperts, AttentionOfTransformers):
    """Goes in front of one of the builder's model classes.

    The attributes are the builder's but for those that `prepare` sets.
    """

    context: Context
    activation: str
    embed_attrs: dict[str, Any]
    mlp_attrs: dict[str, Any]
    make_node: Callable[..., None]
    make_value: Callable[..., Any]

    def prepare(self, context: Context) -> None:
        """What is to be known before the graph is made."""
        self.context = context
        architecture = context.model.architecture
        self.router = architecture.declaration.router
        linears = [*architecture.all_linears, architecture.head_linear]
        self._linears = {_joined(linear.members): linear for linear in linears}
        self._members: dict[Any, Member] = {}
        self._products: set[str] = set()

    def load_weights(self, input_path: str) -> Any:
        """The network of transformers; the weights of its linear layers stay on the meta device."""
        checkpoint, architecture = self.context.model.checkpoint, self.context.model.architecture
        network = skeleton(checkpoint)
        tensors = {
            name: checkpoint.tensor(name)
            for name in network.state_dict()
            if name.removesuffix(".weight") not in architecture.matrices
        }
        network.load_state_dict(tensors, strict=False, assign=True)
        network.requires_grad_(False)
        for path, module in network.named_modules():
            if path in architecture.matrices:
                self._members[module] = Member(path, 0, module.weight.shape[0])
        tied = architecture.embedding if architecture.tied else architecture.head
        self._members[network.get_output_embeddings()] = Member(tied, 0, architecture.vocabulary_size)
        scale = getattr(network.get_input_embeddings(), "embed_scale", None)
        if scale is not None:  # the builder would round it
            self.embed_attrs["scale"] = float(scale)
        return network

    def _register(self, linear: str) -> PackedLinear:
        """Register the packed tensors of a linear, once."""
        context = self.context
        packed = context.weights(linear)
        for tensor, name in tensor_names(linear).items():
            array = getattr(packed, tensor)
            dtype = ir.DataType.from_numpy(array.dtype)
            self._register_lazily(name, dtype, array.shape, partial(self._load, linear, tensor))
        context.classes.update(c for c in range(CLASSES) if packed.rows_per_class[c])
        if packed.codebook.size:  # affine rows have none, whatever its type
            context.codebooks.add(packed.codebook.dtype.name)
        return packed

    def _register_lazily(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], load: Callable[[], Any]) -> None:
        """Register a tensor that is loaded when the graph is written, unless it is registered already."""
        graph = self.model.graph
        if name not in graph.initializers:
            value = self.make_value(name, dtype, shape)
            value.const_value = ir.LazyTensor(load, dtype=value.dtype, shape=value.shape, name=name)
            graph.register_initializer(value)

    def _load(self, linear: str, tensor: str) -> Any:
        return ir.tensor(getattr(self.context.weights(linear), tensor))

    def _packed_node(
        self, operator: Operator, linears: list[str], name: str, value: str | list[str], output: str, **own: int
    ) -> None:
        """A node on packed linears, which are all of one shape; `own` are the operator's own attributes."""
        attributes = operator.node_attributes([self._register(linear) for linear in linears], **own)
        inputs = operator.node_inputs(value, linears)
        self.context.operators.add(operator)
        self.make_node(operator.name, inputs=inputs, outputs=[output], name=name, domain=DOMAIN, **attributes)

    def _register_floats(self, linear: Linear, *, transposed: bool) -> str:
        """Register the weight of a linear that is not packed, `[N, K]` or transposed, once; the name of the tensor."""
        name, shape = f"{linear.name}.weight", (linear.out_features, linear.in_features)
        load = partial(self._load_floats, linear, transposed)
        self._register_lazily(name, self.io_dtype, shape[::-1] if transposed else shape, load)
        return name

    def _load_floats(self, linear: Linear, transposed: bool) -> Any:
        weight = torch.from_numpy(linear_weight(self.context.model.checkpoint, linear))
        weight = weight.to(to_torch_dtype(self.io_dtype))
        return TorchTensor((weight.T if transposed else weight).contiguous())

    def _float_product(self, linear: Linear, name: str, value: str, output: str) -> None:
        """A product with the weight of a linear that is not packed, and its bias; the head may be the embedding."""
        bias = linear_bias(self.context.model.checkpoint, linear)
        product = output if bias is None else f"{name}/product"
        if linear.name == self.context.model.architecture.embedding:
            weight = self._register_floats(linear, transposed=False)
            inputs, domain = [value, weight], "com.microsoft"
            self.make_node("FusedMatMul", inputs=inputs, outputs=[product], name=name, domain=domain, transB=1)
        else:
            weight = self._register_floats(linear, transposed=True)
            self.make_node("MatMul", inputs=[value, weight], outputs=[product], name=name)
        if bias is not None:
            self.make_initializer(torch.from_numpy(bias), f"{linear.name}.bias", to=self.io_dtype)
            self.make_node("Add", inputs=[product, f"{linear.name}.bias"], outputs=[output], name=f"{name}/Add")

    def _linear(self, *modules: Any) -> Linear | None:
        """The linear layer that modules are, one after the other; None if their architecture keeps them float."""
        members = [self._members.get(module) for module in modules]
        if None in members:
            return None
        linear = self._linears[_joined(members)]
        architecture = self.context.model.architecture
        if linear.name == architecture.head and architecture.tied:
            return architecture.embedding_linear
        return linear

    def _is_excluded(self, linear: Linear) -> bool:
        return linear.name in self.context.model.architecture.excluded

    def _product(self, linear: Linear, basename: str, root_input: str, **kwargs: Any) -> str:
        output = "logits" if kwargs.get("logits") else f"{basename}/output_0"
        if self._is_excluded(linear):
            self._float_product(linear, basename, root_input, output)
        else:
            level = self.context.accuracy_level
            self._packed_node(LUT_MATMUL, [linear.name], basename, root_input, output, accuracy_level=level)
        seq_dim = kwargs.get("seq_dim", "sequence_length")
        shape = self.make_hidden_state_shape(seq_dim=seq_dim, last_dim=linear.out_features)
        self.make_value(output, self.io_dtype, shape=shape)
        self._products.add(output)
        return basename

    def make_matmul(self, matmul: Any, basename: str, root_input: str, **kwargs: Any) -> str:
        """The product of a linear layer; the name of the node."""
        if (linear := self._linear(matmul)) is None:
            return super().make_matmul(matmul, basename, root_input, **kwargs)
        return self._product(linear, basename, root_input, **kwargs)

    def make_packed_matmul(self, q: Any, k: Any, v: Any, basename: str, root_input: str, **kwargs: Any) -> str:
        """Query, key and value in one product."""
        linear = self._linear(q, k, v)
        assert linear is not None  # the architecture fuses what the builder does
        return self._product(linear, basename, root_input, **kwargs)

    def make_add_bias(self, add: Any, name: str, root_input: str, **kwargs: Any) -> None:
        """Nothing but another name for a product that adds its bias itself."""
        if root_input not in self._products:
            super().make_add_bias(add, name, root_input, **kwargs)  # type: ignore[misc]
            return
        output = "logits" if kwargs.get("logits") else f"{name}/output_0"
        value = self.values.pop(root_input)
        value.name = output
        self.values[output] = value

    def make_packed_add(self, q: Any, k: Any, v: Any, name: str, root_input: str, **kwargs: Any) -> None:
        """The bias of query, key and value."""
        self.make_add_bias(None, name, root_input, **kwargs)

    def make_embedding_lookup(self, embedding: Any, basename: str, lm_head: Any) -> str:
        """Rows of the token embedding."""
        return self.make_rows(self.weights.get_input_embeddings(), basename)

    def make_rows(self, embedding: Any, basename: str) -> str:
        """Rows of an embedding; the name of the value."""
        linear, ids = self._linear(embedding), self.input_names["input_ids"]
        assert linear is not None  # whatever an architecture keeps float, it's in blocks
        excluded = self._is_excluded(linear)
        name = f"{basename}/{'Gather' if excluded else LUT_GATHER.name}"
        output = f"{name}/output_0"
        if excluded:
            weight = self._register_floats(linear, transposed=False)
            self.make_node("Gather", inputs=[weight, ids], outputs=[output], name=name)
        else:
            self._packed_node(LUT_GATHER, [linear.name], name, ids, output, dtype=int(self.io_dtype))
        return output

    def make_mlp_proj(self, layer_id: int, mlp: Any, root_input: str) -> None:
        """A gated feed-forward network."""
        gate, up = self._linear(mlp.gate_proj), self._linear(mlp.up_proj)
        if self.activation not in SILU or not gate or not up or self._is_excluded(gate) or self._is_excluded(up):
            super().make_mlp_proj(layer_id, mlp, root_input)  # type: ignore[misc]
            return
        basename = f"/model/layers.{layer_id}/mlp"
        gated = f"{basename}/LutSwiglu"
        output = f"{gated}/output_0"
        level = self.context.accuracy_level
        self._packed_node(LUT_SWIGLU, [gate.name, up.name], gated, root_input, output, accuracy_level=level)
        self.make_value(output, self.io_dtype, shape=self.make_hidden_state_shape(last_dim=gate.out_features))
        down = self.make_matmul(mlp.down_proj, f"{basename}/down_proj/MatMul", output)
        self.mlp_attrs["output_0"] = f"{down}/output_0"
        if mlp.down_proj.bias is not None:
            add = f"{basename}/down_proj/Add"
            self.make_add_bias(mlp.down_proj.bias, add, f"{down}/output_0")
            self.mlp_attrs["output_0"] = f"{add}/output_0"

    def make_experts(self, name: str, experts: Any, per_token: int, values: list[str], output: str) -> None:
        """All experts of a layer in one node."""
        if self.activation not in SILU:
            raise UserError(f"experts with the activation {self.activation} are not supported; {SILU[0]} is")
        parts = [self._linear(*(expert[part] for expert in experts)) for part in EXPERT_PARTS]
        linears = [part.name for part in parts if part is not None]
        own = {
            "experts": len(experts),
            "per_token": per_token,
            "gating": CLAMPED_SWIGLU if experts.clamped else SWIGLU,
            "accuracy_level": self.context.accuracy_level,
        }
        self._packed_node(LUT_MOE, linears, name, values, output, **own)
        self.make_value(output, self.io_dtype, shape=self.make_hidden_state_shape())

    def make_attention_unpacked_regular(
        self, layer_id: int, attention: Any, qkv_linear: Any, root_input: str, **kwargs: Any
    ) -> None:
        """Query, key and value are rows of one linear layer."""
        sizes = (self.q_size, self.kv_size, self.kv_size)
        attention.q_proj, attention.k_proj, attention.v_proj = self._rows_of(qkv_linear, sizes)

    def make_mlp_unpacked_regular(self, layer_id: int, mlp: Any, gate_up_linear: Any, root_input: str) -> None:
        """Gate and up are rows of one linear layer."""
        half = gate_up_linear.weight.shape[0] // 2
        mlp.gate_proj, mlp.up_proj = self._rows_of(gate_up_linear, (half, half))

    def _rows_of(self, linear: Any, counts: tuple[int, ...]) -> list[Any]:
        """Runs of rows of a linear layer, as the builder takes linear layers."""
        parts, start = [], 0
        for count in counts:
            rows = slice(start, start + count)
            part = _Rows(linear.weight[rows], None if linear.bias is None else linear.bias[rows])
            if (member := self._members.get(linear)) is not None:
                self._members[part] = Member(member.module, rows.start, rows.stop)
            parts.append(part)
            start += count
        return parts

    def has_lm_head(self, module: Any) -> bool:
        """Whether a module is the head: the builder would take any of its width for it."""
        return module is self.weights.get_output_embeddings()

    def update_genai_config(self, genai_config: dict[str, Any]) -> None:
        """What genai_config.json says beside what the builder writes."""
        super().update_genai_config(genai_config)  # type: ignore[misc]
        if self.context.with_library:
            genai_config["model"]["decoder"]["session_options"]["custom_ops_library"] = LIBRARY_NAME


class _Rows:
    """Some rows of a linear layer: the attributes that the builder looks at."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias, self.out_features = weight, bias, len(weight)


def _joined(members: Any) -> tuple[Member, ...]:
    """Members in which runs of rows that follow each other in one module are one."""
    joined: list[Member] = []
    for member in members:
        if joined and joined[-1].module == member.module and joined[-1].stop == member.start:
            joined[-1] = Member(member.module, joined[-1].start, member.stop)
        else:
            joined.append(member)
    return tuple(joined)
