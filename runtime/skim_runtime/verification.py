"""Whether an exported directory is what was written: a cheap check for every start, and a whole one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from skim_runtime.data_file import METADATA, check_seal
from skim_runtime.errors import UserError
from skim_runtime.model_files import is_file_name
from skim_runtime.onnx_file import OnnxGraph, Tensor
from skim_runtime.operators import FLOATS
from skim_runtime.progress import Progress

__all__ = ["REPORT_NAME", "check_model", "listed_files", "verify"]

REPORT_NAME = "export.json"
CHUNK = 16 << 20  # bytes that are hashed between two steps of the progress
MATRIX = 2  # dimensions


@dataclass(frozen=True)
class File:
    """What export.json says of a file.

    Attributes:
        path: of the file.
        nbytes: its size.
        sha256: of its content, hexadecimal.
    """

    path: Path
    nbytes: int
    sha256: str

    def check_size(self) -> None:
        """Raises `UserError` if it is missing or has another size."""
        if not self.path.is_file():
            raise UserError(f"{self.path}: missing; {REPORT_NAME} lists it")
        if (size := self.path.stat().st_size) != self.nbytes:
            raise UserError(f"{self.path}: has {size} bytes, {REPORT_NAME} says {self.nbytes}; copy it again")

    def check_content(self, progress: Progress, given_up: Event) -> None:
        """Raises `UserError` if its hash is another one; ends early if it is given up."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                if given_up.is_set():
                    return
                digest.update(chunk)
                progress.step(self.path.name)
        if digest.hexdigest() != self.sha256:
            raise UserError(
                f"{self.path}: is damaged or was changed: its SHA-256 is not that of {REPORT_NAME}; copy it again"
            )


def verify(directory: str | Path, *, progress: Progress | None = None) -> list[Path]:
    """Compare all files of an exported directory with the sizes and hashes in its export.json.

    Args:
        directory: what skim-export wrote.
        progress: told of what was read.

    Returns:
        The files, which are as they were written.

    Raises:
        UserError: a file is missing, damaged, or was changed.
    """
    progress = progress or Progress()
    files = _listed(Path(directory))
    if files is None:
        raise UserError(f"{Path(directory) / REPORT_NAME}: missing; without it nothing is known of the other files")
    for file in files:
        file.check_size()
    progress.start("verifying", sum(-(-file.nbytes // CHUNK) for file in files))
    given_up = Event()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        try:
            # The largest first: it takes longest.
            list(
                pool.map(lambda one: one.check_content(progress, given_up), sorted(files, key=lambda one: -one.nbytes))
            )
        except BaseException:
            given_up.set()
            raise
    progress.finish()
    return [file.path for file in files]


def listed_files(directory: Path) -> set[str]:
    """Names of the files that the export.json of a directory lists; none if there is none, or a damaged one."""
    try:
        return {file.path.name for file in _listed(directory) or []}
    except UserError:
        return set()


def check_model(path: Path, graph: OnnxGraph) -> None:
    """What costs next to nothing: sizes, whether graph and data belong together, whether norms and scales are finite.

    Args:
        path: the ONNX file.
        graph: what it says.

    Raises:
        UserError: naming the file, or the tensor.
    """
    locations = {tensor.location for tensor in graph.initializers.values() if tensor.location is not None}
    for file in _listed(path.parent) or []:
        if file.path.name in {path.name, *locations}:
            file.check_size()
    if (sha256 := graph.metadata.get(METADATA)) is not None:
        for location in locations:
            check_seal(path.parent / location, path, sha256)
    for tensor in graph.initializers.values():
        # Vectors: a matrix is a weight that is not packed, which would take as long to read as the model has bytes.
        if tensor.dtype.name in FLOATS.values() and tensor.rank < MATRIX and not tensor.name.endswith(".codebook"):
            _check_finite(path, tensor)


def _check_finite(path: Path, tensor: Tensor) -> None:
    halved = tensor.dtype.name == "bfloat16"  # the upper half of a float32, which numpy does not know
    dtype = np.dtype(np.uint16 if halved else tensor.dtype.name)
    if tensor.location is None:
        values = np.frombuffer(tensor.content, dtype, len(tensor.content) // dtype.itemsize)
    else:
        values = np.fromfile(path.parent / tensor.location, dtype, tensor.size, offset=tensor.offset)
    if halved:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{path}: {tensor.name} has values that are not finite; the model is damaged")


def _listed(directory: Path) -> list[File] | None:
    """The files that export.json lists; None if there is none."""
    report = directory / REPORT_NAME
    if not report.is_file():
        return None
    try:
        listed: Mapping[str, Any] = json.loads(report.read_bytes())["files"]
        files = [File(directory / name, facts["bytes"], facts["sha256"]) for name, facts in listed.items()]
        for name, file in zip(listed, files, strict=True):
            if not is_file_name(name) or not isinstance(file.nbytes, int) or not isinstance(file.sha256, str):
                raise ValueError(f"{name!r} is not described as a file of the directory")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{report}: is malformed ({error}); export the model again") from None
    return files
