"""The directory in which an export keeps what it has done, so that the same command goes on after an interruption."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from skim_export.work.files import disk_error, fsync, write_json
from skim_export.work.sealed import any_sealed, remove_partial
from skim_runtime.errors import UserError

__all__ = ["Workplace", "workplace", "workplace_of"]

PROVENANCE = "provenance.json"
LOCK = "lock"
PUBLISHING = "publishing"


class Workplace:
    """A directory that outlives an interrupted export.

    Attributes:
        directory: where it is.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def subdirectory(self, name: str) -> Path:
        """A directory in this one, which exists now."""
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        return directory

    def empty_subdirectory(self, name: str) -> Path:
        """A directory in this one, with nothing in it."""
        shutil.rmtree(self.directory / name, ignore_errors=True)
        return self.subdirectory(name)

    @property
    def publishing(self) -> bool:
        """Whether files of the output may have been put into place already."""
        return (self.directory / PUBLISHING).is_file()

    def publish(self) -> None:
        """Note that the output is about to be put into place: what is there later need not be another's."""
        (self.directory / PUBLISHING).touch()
        fsync(self.directory)

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be lost with the directory."""
        return not self.publishing and not any_sealed(self.directory)


def workplace_of(target: Path) -> Workplace:
    """The workplace of a target directory, which may not exist."""
    target = target.resolve()
    return Workplace(target.with_name(f".{target.name}.work"))


@contextlib.contextmanager
def workplace(target: Path, provenance: dict[str, Any]) -> Iterator[Workplace]:
    """The workplace of a target directory, for this process alone.

    Left by an interruption or because the disk is full, it stays, if there is anything complete in it. It is removed
    when the block ends, or is left by a user's mistake.

    Args:
        target: the directory that is written in the end.
        provenance: all that the files in the workplace depend on, as plain data: only what was made from the same is
            taken up again.

    Raises:
        UserError: another process is at work there; what is there was made from something else; the disk is full, or
            cannot be written to.
    """
    work = workplace_of(target)
    try:
        lock = _lock(work.directory, target)
    except OSError as error:
        raise UserError(f"cannot write to {target.parent}: {error.strerror}") from error
    keep = True
    try:
        _check_provenance(work, provenance)
        remove_partial(work.directory)
        try:
            yield work
            keep = False
        except UserError:  # the next attempt will be another
            keep = False
            raise
    except (OSError, SafetensorError) as error:
        if (reason := disk_error(error)) is None:
            raise
        kept = "" if work.is_empty else f"; {work.directory} keeps what was done, the same command goes on there"
        raise UserError(f"cannot write {target}: {reason}{kept}") from error
    finally:
        if not keep or work.is_empty:
            shutil.rmtree(work.directory, ignore_errors=True)
        os.close(lock)


def _lock(directory: Path, target: Path) -> int:
    """Lock the directory, which is made if need be; the descriptor that holds the lock."""
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the process that had the lock is just removing everything
            descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if (directory / LOCK).stat().st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise UserError(f"another process is exporting to {target}: it has locked {directory}") from None
            except FileNotFoundError:
                pass
            os.close(descriptor)


def _check_provenance(work: Workplace, provenance: dict[str, Any]) -> None:
    path = work.directory / PROVENANCE
    wanted = json.loads(json.dumps(provenance))
    if not path.is_file():  # it comes before all else
        partial = path.with_suffix(".partial")
        write_json(partial, wanted)
        fsync(partial)
        partial.replace(path)
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise UserError(
                f"{work.directory} keeps an unfinished export with {key} {found.get(key)}, not {wanted.get(key)}: "
                "repeat that command, or remove the directory"
            )
