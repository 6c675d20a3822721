"""The metadata of a GGUF model that belong to its architecture."""

from __future__ import annotations

from typing import Any

from skim_runtime.errors import UserError

from .header import GgufHeader

__all__ = ["Metadata"]

# Keys that say nothing that a model needs.
IDLE = {"attention.causal", "rope.scaling.finetuned", "tensor_data_layout", "vocab_size"}


class Metadata:
    """The keys of one architecture; those that nobody has asked for have not been understood."""

    def __init__(self, header: GgufHeader) -> None:
        self.architecture = header.metadata["general.architecture"]
        self.file = header.files[0]
        prefix = f"{self.architecture}."
        self._values = {
            key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)
        }
        self._unread = set(self._values) - IDLE

    def get(self, key: str, default: Any = None) -> Any:
        """Its value, or the default if the file has no such key."""
        self._unread.discard(key)
        return self._values.get(key, default)

    def need(self, key: str) -> Any:
        """Its value.

        Raises:
            UserError: the file has no such key.
        """
        if key not in self._values:
            raise UserError(f"{self.file}: its metadata lacks {self.architecture}.{key}")
        return self.get(key)

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number above 0; of a number for every block the one that they share, but for zeros.

        Raises:
            UserError: it is something else, or missing and without a default.
        """
        value = self.need(key) if default is None else self.get(key, default)
        values = {one for one in value if one} if isinstance(value, list) else {value}
        if len(values) != 1:
            raise UserError(
                f"{self.file}: {self.architecture}.{key} differs from block to block: no such model is known"
            )
        (one,) = values
        if not isinstance(one, int) or one < 1:
            raise UserError(f"{self.file}: {self.architecture}.{key} must be a whole number above 0, is {one!r}")
        return one

    def expect(self, key: str, value: int) -> None:
        """Find out whether a key, if the file has it, says what follows from others.

        Raises:
            UserError: it says something else.
        """
        if (given := self.get(key, value)) != value:
            raise UserError(f"{self.file}: {self.architecture}.{key} is {given}, expected {value}")

    def check(self) -> None:
        """Find out whether all keys have been read.

        Raises:
            UserError: one has not.
        """
        if self._unread:
            key = min(self._unread)
            shown = str(self._values[key])[:40]
            raise UserError(
                f"{self.file}: its metadata says {self.architecture}.{key} = {shown}: no such model is known"
            )
