"""Files in parts of a size, for a machine that little can be carried to at a time.

`python benchmarks parcels -o DIR FILE..` writes the files and directories as one tar archive that is cut into parts,
with their SHA-256 in `parcels.json`; the step `unpack` joins what arrived in a directory.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from skim_export.work.files import sha256
from skim_runtime.errors import UserError
from skim_runtime.measure.tables import say

__all__ = ["add_arguments", "pack", "run", "unpack"]

LIST = "parcels.json"
MEGABYTES = 52  # of a part, by default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="wheels, and directories of models")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="directory of the parts to be")
    parser.add_argument("--megabytes", type=int, default=MEGABYTES, help="size of a part (%(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the parts."""
    if args.megabytes < 1:
        raise UserError(f"--megabytes {args.megabytes}: must be at least 1")
    for path in args.files:
        if not path.exists():
            raise UserError(f"{path}: does not exist")
    if args.output.exists():
        raise UserError(f"--output {args.output}: exists")
    parts = pack(args.files, args.output, args.megabytes * 10**6)
    say(f"{args.output}: {len(parts)} parts, {sum(part.stat().st_size for part in parts) / 1e6:.0f} MB")


def pack(files: Sequence[Path], directory: Path, part_bytes: int) -> list[Path]:
    """Write files and directories, by their last names, in parts of `part_bytes`; the paths of these."""
    directory.mkdir(parents=True)
    parts = _Parts(directory, part_bytes)
    with tarfile.open(fileobj=parts, mode="w|", bufsize=1 << 20) as archive:
        for path in files:
            archive.add(path, path.name)
    parts.close()
    sums = {path.name: sha256(path) for path in parts.paths}
    (directory / LIST).write_text(json.dumps(sums, indent=2) + "\n", "utf-8")
    return parts.paths


def unpack(directory: Path, output: Path) -> None:
    """Join the parts of a directory, and extract what they hold.

    Raises:
        UserError: a part is missing or damaged.
    """
    listing = directory / LIST
    if not listing.is_file():
        raise UserError(f"{listing} is missing: python benchmarks parcels writes it")
    sums: dict[str, str] = json.loads(listing.read_text("utf-8"))
    missing = [name for name in sums if not (directory / name).is_file()]
    if missing:
        raise UserError(f"{directory}: {len(missing)} of {len(sums)} parts are missing: {', '.join(missing)}")
    for name, expected in sums.items():
        if sha256(directory / name) != expected:
            raise UserError(f"{directory / name}: its SHA-256 is not that of {LIST}: carry it again")
    joined = io.BufferedReader(_Joined([directory / name for name in sums]), 1 << 20)  # type: ignore[type-var]
    with tarfile.open(fileobj=joined, mode="r|") as archive:
        archive.extractall(output, filter="data")


class _Parts(io.RawIOBase):
    """Writes to one file after the other."""

    def __init__(self, directory: Path, part_bytes: int) -> None:
        self.paths: list[Path] = []
        self._directory, self._part_bytes, self._left = directory, part_bytes, 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        rest = memoryview(data)
        while rest:
            if self._left == 0:
                self.paths.append(self._directory / f"part.{len(self.paths):03d}")
                self.paths[-1].touch()
                self._left = self._part_bytes
            piece = rest[: self._left]
            with self.paths[-1].open("ab") as file:
                file.write(piece)
            self._left -= len(piece)
            rest = rest[len(piece) :]
        return len(data)


class _Joined(io.RawIOBase):
    """Reads one file after the other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._pieces = self._read(paths)
        self._piece = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        if not self._piece:
            self._piece = next(self._pieces, b"")
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count

    @staticmethod
    def _read(paths: Sequence[Path]) -> Iterator[bytes]:
        for path in paths:
            with path.open("rb") as file:
                while piece := file.read(1 << 20):
                    yield piece
