"""The CUDA kernels through their C interface (custom_ops/cuda/c_api.cpp): needs numpy and nothing else."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skim_export.packed import CLASSES, PackedLinear

__all__ = ["EPILOGUE_NUMBERS", "FLOAT_TYPE_NUMBERS", "CudaLibrary", "PlacedLayer"]

DEVICE_ALIGNMENT = 16
EPILOGUE_NUMBERS = {"store": 0, "silu": 1, "multiply": 2}
FLOAT_TYPE_NUMBERS = {"float32": 1, "float16": 10, "bfloat16": 16}


class LayerFields(ctypes.Structure):
    """`SkimCudaLayer`."""

    _fields_ = (
        ("N", ctypes.c_int64),
        ("K", ctypes.c_int64),
        ("rows_per_class", ctypes.c_int64 * CLASSES),
        ("int8_codebook", ctypes.c_int64),
        ("codes", ctypes.c_void_p * CLASSES),
        ("codebook", ctypes.c_void_p * CLASSES),
        ("row_scale", ctypes.c_void_p * CLASSES),
        ("destination", ctypes.c_void_p),
        ("stored", ctypes.c_void_p),
        ("column_scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("column_unit", ctypes.c_double),
        ("integers", ctypes.c_int64),
    )


class PlacedLayer:
    """A packed linear as the kernels want it: one block of bytes, every tensor of every class aligned in it.

    Attributes:
        content: the bytes, uint8; to be copied to an address that is a multiple of 16.
        tensors: the bytes of each tensor that has any, by its place in `content`.
    """

    def __init__(self, packed: PackedLinear) -> None:
        self._packed = packed
        self.tensors: dict[int, npt.NDArray[np.uint8]] = {}
        self._size = 0
        self._codes, self._codebook, self._row_scale = [0] * CLASSES, [0] * CLASSES, [0] * CLASSES
        for section in packed.sections():
            number = section.row_class.number
            self._codes[number] = self._add(section.codes)
            self._codebook[number] = self._add(section.codebook)
            self._row_scale[number] = self._add(section.row_scale)
        order = np.argsort(packed.row_class, kind="stable").astype(np.int32)
        self._destination, self._stored = self._add(order), self._add(np.argsort(order).astype(np.int32))
        largest = float(packed.column_scale.max(initial=0))
        self._unit = 2.0 ** np.ceil(np.log2(largest)) if largest > 1 else 1.0
        self._column_scale = self._add((packed.column_scale / np.float16(self._unit)).astype(np.float16))
        self._bias = self._add(packed.bias)
        self.content = np.zeros(self._size, np.uint8)
        for start, tensor in self.tensors.items():
            self.content[start : start + len(tensor)] = tensor

    def fields(self, address: int, integers: bool = False) -> LayerFields:
        """The layer, if its content is at an address; whether activations may be rounded to integers."""
        packed = self._packed
        return LayerFields(
            packed.out_features,
            packed.in_features,
            (ctypes.c_int64 * CLASSES)(*packed.rows_per_class),
            packed.codebook.dtype == np.int8,
            *(
                (ctypes.c_void_p * CLASSES)(*(address + start for start in starts))
                for starts in (self._codes, self._codebook, self._row_scale)
            ),
            address + self._destination if packed.row_class.size else None,
            address + self._stored if packed.row_class.size else None,
            address + self._column_scale if packed.column_scale.size else None,
            address + self._bias if packed.bias.size else None,
            self._unit,
            integers,
        )

    def _add(self, tensor: npt.NDArray[np.generic]) -> int:
        """Append a tensor and return where it begins."""
        start = self._size
        if tensor.size:
            self.tensors[start] = np.frombuffer(tensor.tobytes(), np.uint8)
        self._size += -(-tensor.nbytes // DEVICE_ALIGNMENT) * DEVICE_ALIGNMENT
        return start


class CudaLibrary:
    """A library that the kernels and their C interface were compiled to."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        pointer, fields, size = ctypes.c_void_p, ctypes.POINTER(LayerFields), ctypes.c_int64
        self._matmul, self._gather = library.SkimCudaMatmul, library.SkimCudaGather
        self._matmul.argtypes = (fields, pointer, ctypes.c_int, size, ctypes.c_int, pointer, pointer)
        self._gather.argtypes = (fields, pointer, size, pointer, ctypes.c_int, pointer)

    def matmul(
        self, layer: LayerFields, x: int, dtype: str, tokens: int, y: int, epilogue: str = "store", stream: int = 0
    ) -> int:
        """`skim::cuda::Matmul` on the addresses of x and y; returns its error code."""
        code: int = self._matmul(layer, x, FLOAT_TYPE_NUMBERS[dtype], tokens, EPILOGUE_NUMBERS[epilogue], y, stream)
        return code

    def gather(self, layer: LayerFields, ids: int, count: int, dtype: str, y: int, stream: int = 0) -> int:
        """`skim::cuda::Gather` on the addresses of ids and y; returns its error code."""
        code: int = self._gather(layer, ids, count, y, FLOAT_TYPE_NUMBERS[dtype], stream)
        return code
