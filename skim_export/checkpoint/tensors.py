"""Tensors that are read when they are asked for, a run of rows at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from skim_runtime.errors import UserError

if TYPE_CHECKING:
    import torch

__all__ = ["FLOAT_TYPES", "StoredTensor", "Tensor", "stored_tensors"]

FLOAT_TYPES = ("F64", "F32", "F16", "BF16")  # as safetensors calls them


class Tensor(Protocol):
    """A tensor of a model, as the rest of the exporter sees it."""

    @property
    def file(self) -> Path:
        """Where it lies, or most of it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    def read(self, rows: slice) -> torch.Tensor:
        """Some of its rows, float32; all of a tensor without dimensions."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file.

    The file is mapped while it is read and no longer, so that its pages do not add up in the process's memory.

    Attributes:
        file: the file.
        name: its name there.
        dtype: its type, as safetensors calls it.
        shape: its shape.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    def read(self, rows: slice) -> torch.Tensor:
        """Some of its rows, float32.

        Raises:
            UserError: it is not of a floating-point type.
        """
        import torch

        self.check_type(FLOAT_TYPES)
        # Copied even where it is float32, or else the tensor would keep the file mapped.
        return self.read_stored(rows).to(torch.float32, copy=True)

    def read_stored(self, *parts: slice) -> torch.Tensor:
        """Some of its rows, and some columns of them, in its own type; their memory may be the file's."""
        part: torch.Tensor = _open(self.file).get_slice(self.name)[parts if self.shape else ()]
        return part

    def check_type(self, expected: tuple[str, ...]) -> None:
        """Raise a `UserError` if it has another type."""
        if self.dtype not in expected:
            raise UserError(f"tensor {self.name} in {self.file} has type {self.dtype}; expected {', '.join(expected)}")

    def check_shape(self, *expected: tuple[int, ...]) -> None:
        """Raise a `UserError` if it has none of these shapes."""
        if self.shape not in expected:
            shapes = " or ".join(str(list(shape)) for shape in expected)
            raise UserError(f"tensor {self.name} in {self.file} has shape {list(self.shape)}; expected {shapes}")


def stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """All tensors of some safetensors files by their names; only headers are read.

    Raises:
        UserError: a file is missing, damaged or incomplete.
    """
    stored = {}
    for file in files:
        opened = _open(file)
        for name in opened.keys():  # noqa: SIM118
            part = opened.get_slice(name)
            stored[name] = StoredTensor(file, name, part.get_dtype(), tuple(part.get_shape()))
    return stored


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing: the index names it") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged or incomplete: {error}") from error
