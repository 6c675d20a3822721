"""Writing files so that nothing half-written ever stands under its final name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skim_runtime.errors import UserError

__all__ = ["disk_error", "fsync", "publish", "sha256", "staged_directory", "write_json"]


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Flush a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file of readable form."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def disk_error(error: Exception) -> str | None:
    """Why the disk refused, if it did."""
    from safetensors import SafetensorError  # not above: whoever only writes JSON can do without it

    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])  # it tells the number only in its text
    if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES):
        return None
    return os.strerror(number)


def publish(stage: Path, target: Path, last: str) -> None:
    """Move the files of a directory on the same disk into `target`.

    A new `target` appears by one rename. In a `target` that exists, each file is renamed into place, and `last` (the
    file that users open) after all others.
    """
    files = sorted(stage.iterdir(), key=lambda path: path.name == last)
    for path in files:
        fsync(path)
    fsync(stage)
    if target.exists():
        for path in files:
            path.replace(target / path.name)
        fsync(target)
    else:
        stage.rename(target)
    fsync(target.parent)


@contextmanager
def staged_directory(target: Path, last: str) -> Iterator[Path]:
    """A directory beside `target` whose files appear in `target` only when the block has ended without an error.

    They are moved there by `publish`. On any error the staged files are removed and `target` is as it was.

    Raises:
        UserError: the place cannot be written to, or the disk is full.
    """
    parent = target.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=parent))
    except OSError as error:
        raise UserError(f"cannot write to {parent}: {error.strerror}") from error
    try:
        stage.chmod(0o755)  # mkdtemp makes it private
        yield stage
        publish(stage, target, last)
    except Exception as error:
        if (reason := disk_error(error)) is None:
            raise
        raise UserError(f"cannot write {target}: {reason}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
