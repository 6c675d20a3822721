"""The file with a model's weights: what ties it to the graph that it was written with.

Its last 64 bytes are a seal: `MAGIC`, and the SHA-256 of all bytes before. The graph has the same hash among its
metadata. So a file of another export, or a torn one, is noticed without reading it; damage within is noticed by whoever
computes the hash.
"""

from __future__ import annotations

from pathlib import Path

from skim_runtime.errors import UserError

__all__ = ["METADATA", "SEAL_BYTES", "check_seal", "seal"]

METADATA = "ai.skim.data.sha256"  # key in the graph's metadata; the value is hexadecimal
MAGIC = b"ai.skim.data\0\0\0\1"
SEAL_BYTES = 64


def seal(digest: bytes) -> bytes:
    """The end of a data file whose other bytes have this SHA-256."""
    return (MAGIC + digest).ljust(SEAL_BYTES, b"\0")


def check_seal(data: Path, graph: Path, sha256: str) -> None:
    """Find out whether `data` is the file that `graph` was written with.

    Raises:
        UserError: it is not, or its end is missing.
    """
    with data.open("rb") as file:
        file.seek(-min(SEAL_BYTES, data.stat().st_size), 2)
        found = file.read()
    if not found.startswith(MAGIC):
        raise UserError(f"{data}: its end is missing or damaged; copy it again, or export the model again")
    if found[len(MAGIC) : len(MAGIC) + 32].hex() != sha256:
        raise UserError(f"{data}: is of another export than {graph.name}; both must come from the same")
