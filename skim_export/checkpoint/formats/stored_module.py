"""What the files hold of one quantized module, and what config.json says of the format; each is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skim_export.checkpoint.tensors import StoredTensor
from skim_runtime.errors import UserError

__all__ = ["Settings", "StoredModule"]


@dataclass(frozen=True)
class Settings:
    """An object in config.json.

    Attributes:
        file: config.json.
        name: of the object, e.g. "quantization_config".
        entries: what it holds.
    """

    file: Path
    name: str
    entries: Mapping[str, Any]

    def get(self, *names: str, default: Any = None) -> Any:
        """The first entry of these names that is not null."""
        return next((self.entries[name] for name in names if self.entries.get(name) is not None), default)

    def one_of(self, *names: str, choices: tuple[Any, ...], default: Any = None) -> Any:
        """The same; a `UserError` if it is none of the choices."""
        found = self.get(*names, default=default)
        # A list is none, and 1 is not True
        if not any(type(found) is type(choice) and found == choice for choice in choices):
            raise self.error(names[0], found, f"can be read: {', '.join(map(str, choices))}")
        return found

    def whole(self, *names: str, default: int | None = None) -> int:
        """The same as a whole number, at least 1; a `UserError` if it is none."""
        found = self.get(*names, default=default)
        if type(found) is not int or found < 1:
            raise self.error(names[0], found, "expected a whole number from 1")
        return found

    def pair(self, name: str, default: object = None) -> tuple[int, int]:
        """An entry that is two whole numbers, at least 1; a `UserError` if it is something else."""
        found: object = self.get(name, default=default)
        if not isinstance(found, list) or len(found) != 2 or any(type(one) is not int or one < 1 for one in found):
            raise self.error(name, found, "expected two whole numbers from 1")
        return found[0], found[1]

    def within(self, name: str) -> Settings:
        """An object in it; empty if there is none."""
        found = self.get(name, default={})
        if not isinstance(found, dict):
            raise self.error(name, found, "expected a JSON object")
        return Settings(self.file, f"{self.name}.{name}", found)

    def error(self, name: str, value: object, what: str) -> UserError:
        """To raise where an entry is wrong."""
        return UserError(f"{self.file}: {self.name}.{name} is {value!r}; {what}")


@dataclass(frozen=True)
class StoredModule:
    """The tensors of one module.

    Attributes:
        name: of the module, e.g. "model.layers.0.mlp.up_proj".
        stored: all tensors of the files.
        path: of the model.
        separator: what stands between its name and those of its tensors.
    """

    name: str
    stored: Mapping[str, StoredTensor]
    path: Path
    separator: str = "."

    def has(self, part: str) -> bool:
        """Whether it has a tensor of this name."""
        return f"{self.name}{self.separator}{part}" in self.stored

    def part(self, part: str, types: tuple[str, ...], *shapes: tuple[int, ...]) -> StoredTensor:
        """One of its tensors.

        Args:
            part: its name in the module.
            types: that it may have, as safetensors calls them.
            shapes: that it may have; if none are given, two dimensions of any size.

        Raises:
            UserError: it is missing, or of another type or shape.
        """
        name = f"{self.name}{self.separator}{part}"
        found = self.stored.get(name)
        if found is None:
            raise UserError(f"model {self.path} has no tensor {name}")
        found.check_type(types)
        if shapes:
            found.check_shape(*shapes)
        elif len(found.shape) != 2 or 0 in found.shape:
            raise UserError(f"tensor {found.name} in {found.file} has shape {list(found.shape)}; expected a matrix")
        return found

    def grid(self, part: str, types: tuple[str, ...], rows: int, columns: int) -> StoredTensor:
        """A matrix of scales or zero points, of which a single column may be stored as a vector, one value as such."""
        shapes: list[tuple[int, ...]] = [(rows, columns)]
        if columns == 1:
            shapes.append((rows,))
        if rows == columns == 1:
            shapes.append(())
        return self.part(part, types, *shapes)
