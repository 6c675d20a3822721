"""The directory in which an export keeps what it has done, so that the same command goes on after an interruption."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from skim_export.work.files import disk_error, fsync, write_json
from skim_export.work.place import place_for
from skim_export.work.sealed import any_sealed, remove_partial
from skim_runtime.errors import UserError

__all__ = ["Workplace", "workplace", "workplace_of"]

PROVENANCE = "provenance.json"
LOCK = "lock"
PUBLISHING = "publishing"
REMOVED = ".removed-"  # in the name of what is being deleted


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
    return Workplace(place_for(target, "work"))


@contextlib.contextmanager
def workplace(target: Path, provenance: dict[str, Any], *, fresh: bool = False) -> Iterator[Workplace]:
    """The workplace of a target directory, for this process alone.

    Whatever goes wrong, it stays if there is anything complete in it, and is removed when the block ends.

    Args:
        target: the directory that is written in the end.
        provenance: all that the files in the workplace depend on, as plain data: only what was made from the same is
            taken up again.
        fresh: whether to begin anew, whatever is there.

    Raises:
        UserError: another process is at work there; what is there was made from something else; the disk is full, or
            cannot be written to.
    """
    work = workplace_of(target)
    try:
        lock = _lock(work.directory, target)
    except OSError as error:
        raise UserError(f"cannot write to {target.parent}: {error.strerror}") from error
    done = False
    try:
        if fresh:
            _empty(work)
        _check_provenance(work, provenance)
        remove_partial(work.directory)
        try:
            yield work
        except UserError as error:
            if work.is_empty:
                raise
            raise UserError(f"{error}; {work.directory} keeps what was done, --fresh begins anew") from error
        done = True
    except (OSError, SafetensorError) as error:
        if (reason := disk_error(error)) is None:
            raise
        kept = "" if work.is_empty else f"; {work.directory} keeps what was done, the same command goes on there"
        raise UserError(f"cannot write {target}: {reason}{kept}") from error
    finally:
        try:
            if done or work.is_empty:
                _remove(work.directory)
        finally:
            os.close(lock)


def _remove(directory: Path) -> None:
    """Remove a workplace at one blow: a process that is killed meanwhile leaves nothing that another would take up."""
    for abandoned in directory.parent.glob(f"{glob.escape(directory.name)}{REMOVED}*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    with contextlib.suppress(OSError):
        away = directory.with_name(f"{directory.name}{REMOVED}{uuid4().hex}")
        directory.rename(away)
        shutil.rmtree(away, ignore_errors=True)


def _empty(work: Workplace) -> None:
    """Remove everything but the lock: first what says that the rest is to be trusted."""
    (work.directory / PROVENANCE).unlink(missing_ok=True)
    for path in work.directory.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


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
    if not path.is_file():
        if not work.is_empty:  # it comes before all else
            raise UserError(f"{work.directory} keeps files of an unknown export: give --fresh to begin anew")
        partial = path.with_suffix(".partial")
        write_json(partial, wanted)
        fsync(partial)
        partial.replace(path)
        return
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        raise UserError(f"{path}: is damaged: give --fresh to begin anew") from None
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise UserError(
                f"{work.directory} keeps an unfinished export with {key} {found.get(key)}, not {wanted.get(key)}: "
                "repeat that command, or give --fresh to begin anew"
            )
