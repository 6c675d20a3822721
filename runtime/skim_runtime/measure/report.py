"""What a measurement writes to a JSON file: what was run, when, of which commit and on what machine."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from skim_runtime.errors import UserError

__all__ = ["check_json", "last_level_cache", "machine", "report_head", "save_json", "versions"]

UNKNOWN_CACHE = 32 << 20  # bytes, where the system does not tell
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-genai", "torch", "xllamacpp")


def report_head() -> dict[str, Any]:
    """What every report begins with: the command, the date, commit, versions, and facts about the machine."""
    return {
        "command": _command(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "versions": versions(),
        "machine": machine(),
    }


def check_json(path: Path | None) -> None:
    """Find out before a measurement whether what `--json` names can be written, if it was given.

    Raises:
        UserError: there is no such directory.
    """
    if path is not None and not path.parent.is_dir():
        raise UserError(f"--json {path}: there is no directory {path.parent}")


def save_json(path: Path | None, value: dict[str, Any]) -> None:
    """Write what `--json` asks for, if it was given: all of it, or what was there before stays.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        return
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written: {error.strerror}") from error


def machine() -> dict[str, Any]:
    """The processor, cores that this process may use, and caches that the first of them can use, in bytes."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "caches": _caches(),
        "last_level_cache": last_level_cache(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that a measurement may depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def last_level_cache() -> int:
    """Bytes of the largest cache that the first core can use."""
    return max(_caches().values(), default=UNKNOWN_CACHE)


def _command() -> str:
    """The command line of this process."""
    program = Path(sys.argv[0])
    return shlex.join([*(["python"] if program.is_dir() else []), program.name, *sys.argv[1:]])


def _processor() -> str:
    """Its name; on x86 with family and model, since the name alone may be that of several generations."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" not in facts:
        return name
    return f"{name} (family {facts['cpu family']}, model {facts.get('model', 'unknown')})"


def _caches() -> dict[str, int]:
    """Bytes of the first core's caches for data, such as "L2"."""
    found = {}
    for path in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((path / name).read_text("utf-8").strip() for name in ("level", "type", "size"))
        except OSError:  # a virtual machine may not tell all of it
            continue
        match = re.fullmatch(r"(\d+)([KMG]?)", size)
        if match and kind != "Instruction":
            found[f"L{level}"] = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]
    return found


def _commit() -> str | None:
    """The commit that this file belongs to, "-dirty" behind it if files were changed since; None without git."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    known = [*git, "ls-files", "--error-unmatch", here.name]
    describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        subprocess.run(known, capture_output=True, check=True)
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
