"""Writing files so that nothing half-written ever stands under its final name."""

from __future__ import annotations

import ctypes
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

from skim_export.work.place import place_for
from skim_runtime.errors import UserError
from skim_runtime.verification import REPORT_NAME, listed_files

__all__ = ["disk_error", "fsync", "publish", "sha256", "staged_directory", "write_json"]

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # fcntl.h and linux/fs.h


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
    """Put the files of a directory on the same disk into `target`.

    A new `target` appears by one rename. One that exists changes places with `stage`, where that can be done: at
    every moment it is as before or as it will be. What is in it and was not of an export stays. Elsewhere each file is
    renamed into place, and `last` (the file that users open) after all others.
    """
    files = sorted(stage.iterdir(), key=lambda path: path.name == last)
    for path in files:
        fsync(path)
    fsync(stage)
    if not target.exists():
        stage.rename(target)
    # Whoever works in the directory, as a shell does, would be left in the old one.
    elif Path.cwd().is_relative_to(target) or not _keep_others(stage, target) or not _exchange(stage, target):
        for path in files:
            path.replace(target / path.name)
        fsync(target)
    fsync(target.parent)


def _keep_others(stage: Path, target: Path) -> bool:
    """Link into `stage` what an export did not write into `target`; false if that can't be done."""
    exported = listed_files(target) | {REPORT_NAME}
    others = [path for path in target.iterdir() if path.name not in exported and not (stage / path.name).exists()]
    if any(path.is_dir() and not path.is_symlink() for path in others):
        return False
    try:
        for path in others:
            (stage / path.name).hardlink_to(path)
    except OSError:  # a file system without links
        return False
    fsync(stage)
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Let two directories change places, at once; false if the system can't."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # not Linux, or an old one
        return False
    code: int = renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    return code == 0


@contextmanager
def staged_directory(target: Path, last: str) -> Iterator[Path]:
    """A directory whose files appear in `target` only when the block has ended without an error.

    They are moved there by `publish`. On any error the staged files are removed and `target` is as it was.

    Raises:
        UserError: the place cannot be written to, or the disk is full.
    """
    place = place_for(target, "partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f"{place.name}-", dir=place.parent))
    except OSError as error:
        raise UserError(f"cannot write to {place.parent}: {error.strerror}") from error
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
