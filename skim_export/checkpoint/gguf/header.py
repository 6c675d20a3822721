"""The header of a GGUF model, in one file or split into several: its metadata, and where its tensors lie.

The reader of the package gguf keeps several numpy arrays for every token of a vocabulary: it takes 20 s where this
takes less than one, and believes a damaged file what it says.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skim_runtime.errors import UserError

__all__ = ["BlockTensor", "GgufHeader", "find_gguf", "readable_types"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
FLOATS = ("F64", "F32", "F16", "BF16")  # types that are no quantization
ALIGNMENT = 32  # of the data, unless the metadata says otherwise
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
FLOAT32 = 6
LEAST_BYTES = 8  # of a string, an entry or a tensor: none is shorter
MOST_DIMENSIONS = 4
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class BlockTensor:
    """A tensor as a GGUF file stores it: rows of blocks of quantized values, or plain ones.

    Attributes:
        file: where it lies.
        offset: of its first byte.
        kind: number of its type, as in `gguf.GGMLQuantizationType`.
        shape: of its values, as torch has it: rows first.
    """

    file: Path
    offset: int
    kind: int
    shape: tuple[int, ...]

    @property
    def type_name(self) -> str:
        """Name of its type, e.g. "Q4_K"."""
        from gguf import GGMLQuantizationType

        return str(GGMLQuantizationType(self.kind).name)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(self.kind)]
        return int(self.shape[-1] // block * size)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return math.prod(self.shape[:-1]) * self.row_bytes

    def read(self, rows: slice | npt.NDArray[np.int64] = slice(None)) -> npt.NDArray[np.float32]:
        """The values, float32 `shape`, or those of some of its rows."""
        from gguf import GGMLQuantizationType, dequantize

        one_row = len(self.shape) == 1  # of the file, whose values are rows to torch
        mapped = np.memmap(self.file, np.uint8, "r", self.offset, (*self.shape[:-1], self.row_bytes))
        # Copied, or plain values would keep the file mapped.
        stored = np.array(mapped if one_row else mapped[rows], order="C")
        values: npt.NDArray[np.float32] = dequantize(stored, GGMLQuantizationType(self.kind)).astype(
            np.float32, copy=False
        )
        return values[rows] if one_row else values


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF model says of itself.

    Attributes:
        files: its parts in order; the first one has the metadata of the model.
        metadata: by name. A number that is float32 in the file is the shortest decimal that means it: what was written.
        tensors: by the names that GGUF has for them.
    """

    files: tuple[Path, ...]
    metadata: dict[str, Any]
    tensors: dict[str, BlockTensor]

    @property
    def quantization(self) -> str | None:
        """The types of its matrices that are quantized, those with most values first; None if all are floats."""
        values: dict[str, int] = {}
        for tensor in self.tensors.values():
            if len(tensor.shape) > 1 and tensor.type_name not in FLOATS:
                values[tensor.type_name] = values.get(tensor.type_name, 0) + math.prod(tensor.shape)
        types = sorted(values, key=lambda name: -values[name])
        return f"GGUF, {', '.join(types)}" if types else None

    @classmethod
    def read(cls, files: tuple[Path, ...]) -> GgufHeader:
        """Read the headers of all parts of a model; no tensor is read.

        Raises:
            UserError: one is damaged or incomplete, holds a type that cannot be read, or is no part of the same model.
        """
        parts = [_read(file) for file in files]
        header = replace(parts[0], files=files)
        for number, part in enumerate(parts):
            said = part.metadata.get("split.no", 0), part.metadata.get("split.count", 1) or 1
            if said != (number, len(parts)):
                raise UserError(f"{part.files[0]} says to be part {said[0] + 1} of {said[1]}, unlike its name")
            for name, tensor in part.tensors.items():
                if number and header.tensors.setdefault(name, tensor) is not tensor:
                    raise UserError(f"{part.files[0]} holds the tensor {name} once more")
        expected = header.metadata.get("split.tensors.count", len(header.tensors))
        if len(header.tensors) != expected:
            raise UserError(f"{files[0]} says that its parts hold {expected} tensors; they hold {len(header.tensors)}")
        _check_types(header)
        return header

    @property
    def name(self) -> str:
        """Name of the file without suffix and number of the part."""
        match = PART.fullmatch(self.files[0].name)
        return match[1] if match else self.files[0].stem


def find_gguf(path: Path) -> tuple[Path, ...] | None:
    """The parts of the GGUF model that a path leads to: one of them, or the directory of one model.

    Returns:
        None if the path is something else: another file, or a directory without GGUF files.

    Raises:
        UserError: a part is missing, or the directory holds several models.
    """
    if path.is_dir():
        models = {_parts(file) for file in path.glob("*.gguf")}
        if len(models) > 1:
            names = ", ".join(sorted(parts[0].name for parts in models))
            raise UserError(f"model {path} holds several GGUF models ({names}): give the file of one")
        files = next(iter(models), None)
    elif path.suffix == ".gguf":
        files = _parts(path)
    else:
        return None
    for file in files or ():
        if not file.is_file():
            raise UserError(f"{file} is missing: the model has {len(files or ())} parts")
    return files


def readable_types() -> list[str]:
    """Names of the types whose values can be read."""
    from gguf import GGML_QUANT_SIZES

    return [kind.name for kind in GGML_QUANT_SIZES if _readable(kind)]


def _parts(file: Path) -> tuple[Path, ...]:
    match = PART.fullmatch(file.name)
    if match is None:
        return (file,)
    stem, _, count = match.groups()
    return tuple(file.with_name(f"{stem}-{number:05}-of-{count}.gguf") for number in range(1, int(count) + 1))


def _readable(kind: int) -> bool:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    quantization = GGMLQuantizationType(kind)
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[quantization][1]), np.uint8), quantization)
    except NotImplementedError:
        return False
    return True


def _check_types(header: GgufHeader) -> None:
    for kind in Counter(tensor.kind for tensor in header.tensors.values()):
        if not _readable(kind):
            name, tensor = next((name, x) for name, x in header.tensors.items() if x.kind == kind)
            raise UserError(
                f"{tensor.file}: tensor {name} has type {tensor.type_name}; readable are {', '.join(readable_types())}"
            )


def _read(file: Path) -> GgufHeader:
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Parser(file, content).header()
    except (ValueError, struct.error) as error:  # mmap's too, of an empty file
        raise UserError(f"{file} is damaged: it is no GGUF file, or ends too early ({error})") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error


class _Parser:
    """Takes a header apart; whatever does not fit into the file is a ValueError or a struct.error."""

    def __init__(self, file: Path, content: mmap.mmap) -> None:
        self._file, self._content, self._position = file, content, 0

    def header(self) -> GgufHeader:
        if self._bytes(len(MAGIC)) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self._scalar("I")
        if version not in VERSIONS:
            raise UserError(f"{self._file} has version {version} of GGUF; readable are {VERSIONS}, little-endian")
        tensors, entries = self._count(), self._count()
        metadata = dict(self._entry() for _ in range(entries))
        infos = [self._tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment}")
        data = -(-self._position // alignment) * alignment
        placed = {name: replace(tensor, offset=data + tensor.offset) for name, tensor in infos}
        if len(placed) != tensors or len(metadata) != entries:
            raise ValueError("a name occurs twice")
        for name, tensor in placed.items():
            if tensor.offset + tensor.nbytes > len(self._content):
                raise ValueError(f"the tensor {name} lies behind its end")
        return GgufHeader((self._file,), metadata, placed)

    def _bytes(self, count: int) -> bytes:
        start, self._position = self._position, self._position + count
        if self._position > len(self._content):
            raise ValueError("its header is cut off")
        return self._content[start : self._position]

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self._bytes(struct.calcsize(f"<{code}")))
        return value

    def _count(self) -> int:
        count: int = self._scalar("Q")
        if count > (len(self._content) - self._position) // LEAST_BYTES:
            raise ValueError(f"it says to hold {count} of something")
        return count

    def _string(self) -> str:
        return self._bytes(self._scalar("Q")).decode("utf-8")

    def _entry(self) -> tuple[str, Any]:
        return self._string(), self._value(self._scalar("I"))

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            return self._array(self._scalar("I"), self._scalar("Q"))
        (value,) = self._array(kind, 1)
        return float(str(np.float32(value))) if kind == FLOAT32 else value

    def _array(self, kind: int, count: int) -> list[Any]:
        if count > len(self._content) - self._position:
            raise ValueError(f"it says to hold {count} values")
        if kind == STRING:
            return [self._string() for _ in range(count)]
        if kind not in SCALARS:
            raise ValueError(f"it holds metadata of type {kind}")
        code = f"<{count}{SCALARS[kind]}"
        return list(struct.unpack(code, self._bytes(struct.calcsize(code))))

    def _tensor(self) -> tuple[str, BlockTensor]:
        name, dimensions = self._string(), self._scalar("I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"the tensor {name} has {dimensions} dimensions")
        shape = tuple(reversed([self._scalar("Q") for _ in range(dimensions)]))
        kind, offset = self._scalar("I"), self._scalar("Q")
        return name, _checked(BlockTensor(self._file, offset, kind, shape), name)


def _checked(tensor: BlockTensor, name: str) -> BlockTensor:
    from gguf import GGML_QUANT_SIZES

    sizes = GGML_QUANT_SIZES.get(tensor.kind)
    if sizes is None:
        raise UserError(
            f"{tensor.file}: tensor {name} has type {tensor.kind}; readable are {', '.join(readable_types())}"
        )
    if 0 in tensor.shape or tensor.shape[-1] % sizes[0]:
        raise ValueError(f"the tensor {name} of shape {tensor.shape} does not fit into blocks of {sizes[0]}")
    return tensor
