"""Layers of random weights in the formats that are compared, and onnxruntime models of many copies of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from skim_export.measure.random_linear import random_linear
from skim_export.packed import (
    CLASSES,
    PackedLinear,
    row_bytes,
    row_classes,
)
from skim_runtime.operators import DOMAIN, LUT_MATMUL

__all__ = ["CHECKED_ROWS", "RandomLayer", "dense_layer", "model_of", "model_of_nothing", "nbits_layer", "packed_layer"]

Random = np.random.Generator
CHECKED_ROWS = 64  # of each class: dequantizing all rows in numpy would take longer than the measurement
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class RandomLayer:
    """A linear layer as one ONNX node.

    Attributes:
        operator: its type.
        domain: its domain.
        attributes: its attributes.
        tensors: its inputs after X.
        sample: finds some rows of the weight matrix, and what they mean, float32 `[rows, K]`.
    """

    operator: str
    domain: str
    attributes: dict[str, Any]
    tensors: dict[str, npt.NDArray[Any]]
    sample: Callable[[], tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def packed_layer(random: Random, rows: int, columns: int, shares: dict[int, float]) -> RandomLayer:
    """A LutMatMul node on int8 codebooks without a column scale, as `skim-export` writes them by default.

    Args:
        random: where the weights come from.
        rows: N.
        columns: K, a multiple of 32: then any bytes are valid codes.
        shares: share of the rows by class; the last class gets what rounding leaves.
    """
    packed = random_linear(random, rows, columns, shares)

    def sample() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        part, chosen = _first_rows(packed, CHECKED_ROWS)
        return chosen, part.dequantize()

    tensors = {name: getattr(packed, name) for name in PackedLinear.TENSORS}
    return RandomLayer(LUT_MATMUL.name, DOMAIN, LUT_MATMUL.node_attributes([packed]), tensors, sample)


def _first_rows(packed: PackedLinear, count: int) -> tuple[PackedLinear, npt.NDArray[np.int64]]:
    """The first `count` stored rows of each class as a packed linear, and which rows of `packed` they are."""
    kept: dict[str, list[npt.NDArray[Any]]] = {"codes": [], "codebook": [], "row_scale": [], "rows": []}
    counts, order = np.minimum(packed.rows_per_class, count), packed.row_order()
    start = dict.fromkeys(kept, 0)
    for row_class in row_classes(packed):
        sizes = {
            "codes": row_bytes(row_class.bits, packed.in_features),
            "codebook": row_class.entries,
            "row_scale": row_class.scales,
            "rows": 1,
        }
        for name, size in sizes.items():
            source = order if name == "rows" else getattr(packed, name)
            kept[name].append(source[start[name] : start[name] + counts[row_class.number] * size])
            start[name] += packed.rows_per_class[row_class.number] * size
    joined = {name: np.concatenate(parts) for name, parts in kept.items()}
    chosen = joined.pop("rows")
    # In the order of storage: the sample's own rows are sorted by class.
    classes = np.repeat(np.arange(CLASSES, dtype=np.uint8), counts)
    sample = PackedLinear(
        out_features=len(chosen),
        in_features=packed.in_features,
        rows_per_class=tuple(counts.tolist()),
        row_class=classes if packed.row_class.size else packed.row_class,
        column_scale=packed.column_scale,
        bias=packed.bias,
        **joined,
    )
    return sample, chosen


def nbits_layer(
    random: Random, rows: int, columns: int, bits: int, block: int, dtype: npt.DTypeLike = np.float32
) -> RandomLayer:
    """A MatMulNBits node: evenly spaced levels, a scale of `dtype` for each `block` columns, no zero points."""
    blocks = columns // block
    codes = _bytes(random, rows * columns * bits // 8)
    scales = random.uniform(1e-3, 1e-2, rows * blocks).astype(dtype)

    def sample() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        chosen = np.arange(min(rows, CHECKED_ROWS))
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        fields = (codes.reshape(rows, -1)[chosen][:, :, None] >> shifts) & np.uint8((1 << bits) - 1)  # low bits first
        levels = fields.reshape(len(chosen), blocks, block).astype(np.float32) - np.float32(1 << (bits - 1))
        return chosen, (levels * scales.reshape(rows, blocks, 1)[chosen]).reshape(len(chosen), columns)

    attributes = {"N": rows, "K": columns, "bits": bits, "block_size": block}
    tensors: dict[str, npt.NDArray[Any]] = {
        "codes": codes.reshape(rows, blocks, block * bits // 8),
        "scales": scales,
    }
    return RandomLayer("MatMulNBits", MICROSOFT, attributes, tensors, sample)


def dense_layer(random: Random, rows: int, columns: int) -> RandomLayer:
    """A MatMul node on float32 weights."""
    weight = random.standard_normal((columns, rows), np.float32)
    chosen = np.arange(min(rows, CHECKED_ROWS))
    return RandomLayer("MatMul", "", {}, {"weight": weight}, lambda: (chosen, weight[:, chosen].T))


def _bytes(random: Random, count: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(random.bytes(count), np.uint8)


def model_of(layers: Sequence[RandomLayer], dtype: npt.DTypeLike = np.float32, /, **attributes: Any) -> bytes:
    """A serialized model with a node for each layer, all of the input `X`, with the outputs `Y0`, `Y1`, ...

    X and the outputs are of `dtype`; `attributes` are added to those of the layers.
    """
    nodes, tensors = [], {}
    for i, layer in enumerate(layers):
        names = []
        for name, array in layer.tensors.items():
            # Empty tensors are shared: thousands of them would make loading slow.
            names.append(f"{name}{i}" if array.size else name)
            tensors[names[-1]] = array
        nodes.append(
            helper.make_node(
                layer.operator, ["X", *names], [f"Y{i}"], domain=layer.domain, **layer.attributes, **attributes
            )
        )
    return _serialized(nodes, [numpy_helper.from_array(array, name) for name, array in tensors.items()], dtype)


def model_of_nothing(nodes: int) -> bytes:
    """A model like those of `model_of`, whose nodes do next to nothing."""
    return _serialized([helper.make_node("Abs", ["X"], [f"Y{i}"]) for i in range(nodes)], [], np.float32)


def _serialized(nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], dtype: npt.DTypeLike) -> bytes:
    element_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs, *outputs = [
        helper.make_tensor_value_info(name, element_type, [None, None])
        for name in ("X", *(node.output[0] for node in nodes))
    ]
    graph = helper.make_graph(nodes, "layers", [inputs], outputs, tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1), helper.make_opsetid(MICROSOFT, 1)]
    serialized: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return serialized
