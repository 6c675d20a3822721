"""A packed checkpoint: one safetensors file a linear layer, each of them complete or absent."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.numpy import save_file

from skim_export.packed.linear import FORMAT_VERSION, PackedLinear
from skim_export.work.sealed import is_sealed, write_sealed

if TYPE_CHECKING:
    import torch

__all__ = ["PackedCheckpoint"]


class PackedCheckpoint:
    """A directory of packed linears, written one by one.

    `<name>.safetensors` holds the six tensors of docs/format.md; its metadata the shape, the row counts and a report
    of how a linear was made. `parameters` holds whatever else is not as in the original checkpoint.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """The file of a linear."""
        return self.directory / f"{name}.safetensors"

    @property
    def _parameters(self) -> Path:
        return self.directory / "parameters"

    def write(self, name: str, packed: PackedLinear, report: dict[str, Any]) -> None:
        """Store a linear; it appears under its name when all of it is on the disk."""
        metadata = {
            "version": str(FORMAT_VERSION),
            "shape": json.dumps([packed.out_features, packed.in_features]),
            "rows_per_class": json.dumps(packed.rows_per_class),
            "report": json.dumps(report),
        }
        tensors = {tensor: getattr(packed, tensor) for tensor in PackedLinear.TENSORS}
        write_sealed(self.path(name), lambda path: save_file(tensors, path, metadata))

    def is_complete(self, name: str) -> bool:
        """Whether a linear was stored and is as it was then; it is read to find out."""
        return is_sealed(self.path(name))

    def read(self, name: str) -> PackedLinear:
        """Load a linear.

        Raises:
            PackedFormatError: the stored tensors violate the format.
        """
        with safe_open(self.path(name), framework="numpy") as file:
            metadata = file.metadata()
            out_features, in_features = json.loads(metadata["shape"])
            tensors = {tensor: file.get_tensor(tensor) for tensor in PackedLinear.TENSORS}
        packed = PackedLinear(out_features, in_features, tuple(json.loads(metadata["rows_per_class"])), **tensors)
        packed.validate()
        return packed

    def write_parameters(self, parameters: dict[str, torch.Tensor]) -> None:
        """Store parameters that are not packed but differ from the original checkpoint's, by their names there."""
        from safetensors.torch import save_file as save_torch_file

        write_sealed(self._parameters, lambda path: save_torch_file(parameters, path))

    def parameters(self) -> dict[str, torch.Tensor]:
        """What `write_parameters` stored, or nothing."""
        from safetensors.torch import load_file

        return load_file(self._parameters) if self._parameters.is_file() else {}

    def report(self, name: str) -> dict[str, Any]:
        """The report that was stored with a linear."""
        with safe_open(self.path(name), framework="numpy") as file:
            report: dict[str, Any] = json.loads(file.metadata()["report"])
        return report

    def copied(self, directory: Path) -> PackedCheckpoint:
        """The same linears in another, empty directory on the same disk, without taking space until they change."""
        for path in self.directory.iterdir():
            (directory / path.name).hardlink_to(path)
        return PackedCheckpoint(directory)

    def digest(self, name: str) -> str:
        """SHA-256 of a linear's tensors (files differ in the order of their metadata)."""
        packed = self.read(name)
        digest = hashlib.sha256(json.dumps([packed.out_features, packed.in_features, *packed.rows_per_class]).encode())
        for tensor in PackedLinear.TENSORS:
            digest.update(getattr(packed, tensor).tobytes())
        return digest.hexdigest()

    def __contains__(self, name: str) -> bool:
        return self.path(name).exists()

    def names(self) -> list[str]:
        """The linears that are complete, in alphabetical order."""
        return sorted(path.stem for path in self.directory.glob("*.safetensors"))
