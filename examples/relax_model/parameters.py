"""The parameters of a compiled model: tensors of the ONNX file, mapped into memory, and what is derived from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from tvm import relax

from skim_runtime.aligned import ALIGNMENT, aligned_copy

__all__ = ["Derivation", "Parameter", "Parameters", "Tensors"]

Array = npt.NDArray[Any]
Derivation = Literal["stored", "float32", "row_index", "stored_row", "ones"]


@dataclass(frozen=True)
class Parameter:
    """An argument of a compiled model that is always the same.

    Attributes:
        name: of the argument.
        tensor: the initializer that it is made from.
        derivation: how: "stored" as it is, or "float32" converted; from row classes the original row of each stored
            one ("row_index") or the inverse ("stored_row"); "ones" does not look at the tensor.
        dtype: element type.
        shape: sizes.
    """

    name: str
    tensor: str
    derivation: Derivation
    dtype: str
    shape: tuple[int, ...]


class Tensors(Mapping[str, Array]):
    """The initializers of an ONNX model by name; external ones are mapped into memory, not read.

    All arrays are aligned and followed by readable memory, as kernels need it.

    Args:
        model: the model, without its external data.
        directory: where its external data lies.
    """

    def __init__(self, model: onnx.ModelProto, directory: Path) -> None:
        self._protos = {tensor.name: tensor for tensor in model.graph.initializer}
        self._directory = directory
        self._files: dict[str, npt.NDArray[np.uint8]] = {}

    def __getitem__(self, name: str) -> Array:
        proto = self._protos[name]
        if proto.data_location != onnx.TensorProto.EXTERNAL:
            return aligned_copy(numpy_helper.to_array(proto))
        entries = {entry.key: entry.value for entry in proto.external_data}
        location = entries["location"]
        if location not in self._files:
            # Copy on write: DLPack hands on writable arrays only.
            self._files[location] = np.memmap(self._directory / location, np.uint8, "c")
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(proto.data_type))
        start = int(entries.get("offset", 0))
        end = start + dtype.itemsize * int(np.prod(proto.dims))
        file = self._files[location]
        array: Array = file[start:end].view(dtype).reshape(proto.dims)
        usable = start % ALIGNMENT == 0 and end + ALIGNMENT <= file.size
        return array if usable else aligned_copy(array)

    def __iter__(self) -> Iterator[str]:
        return iter(self._protos)

    def __len__(self) -> int:
        return len(self._protos)

    def derive(self, parameter: Parameter) -> Array:
        """The array of a parameter."""
        tensor = self[parameter.tensor]
        if parameter.derivation == "stored":
            return tensor
        return aligned_copy(_DERIVATIONS[parameter.derivation](tensor, parameter.shape[0]))


class Parameters:
    """The parameters of a module, in the order in which nodes asked for them.

    Args:
        tensors: the initializers of the graph.

    Attributes:
        variables: the variable of each parameter.
    """

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.variables: dict[Parameter, relax.Var] = {}

    def variable(
        self, tensor: str, derivation: Derivation = "stored", shape: tuple[int, ...] | None = None
    ) -> relax.Var:
        """The variable of a parameter; its shape is that of the tensor if not given."""
        array = self.tensors[tensor]
        dtype = _derived_dtype(derivation, array.dtype)
        name = tensor if derivation == "stored" else f"{tensor}.{derivation}"
        parameter = Parameter(name, tensor, derivation, dtype, shape or array.shape)
        if parameter not in self.variables:
            self.variables[parameter] = relax.Var(name, relax.TensorType(parameter.shape, parameter.dtype))
        return self.variables[parameter]


def _row_index(row_class: Array, rows: int) -> npt.NDArray[np.int32]:
    order = np.argsort(row_class, kind="stable") if row_class.size else np.arange(rows)
    return order.astype(np.int32)


def _derived_dtype(derivation: Derivation, dtype: np.dtype[Any]) -> str:
    """Element type of what is derived from a tensor of type `dtype`."""
    return _DTYPES.get(derivation, dtype.name)


_DTYPES = {"float32": "float32", "row_index": "int32", "stored_row": "int32", "ones": "float32"}
_DERIVATIONS: dict[str, Callable[[Array, int], Array]] = {
    "float32": lambda tensor, _: tensor.astype(np.float32),
    "row_index": _row_index,
    "stored_row": lambda tensor, rows: np.argsort(_row_index(tensor, rows)).astype(np.int32),
    "ones": lambda _, size: np.ones(size, np.float32),
}
