"""What measurements of speed share: shapes from the command line, facts about the machine, and how fast it reads."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from skim_export.work.files import write_json
from skim_runtime.errors import UserError

__all__ = [
    "at_least",
    "last_level_cache",
    "machine",
    "number",
    "parse_shape",
    "read_bandwidth",
    "save_json",
]

UNKNOWN_CACHE = 32 << 20  # bytes, where the system does not tell
READINGS = 10
PACKAGES = ("onnxruntime", "onnxruntime-genai", "numpy")


def parse_shape(shape: str, multiple: int = 1, option: str = "--shapes") -> tuple[int, int]:
    """Rows N and columns K from `NxK`, the value of an option.

    Raises:
        UserError: it is something else, or K is no multiple of `multiple`.
    """
    match = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", shape)
    if match is None:
        raise UserError(f"{option} {shape}: must be rows and columns, such as 4096x4096")
    if int(match[2]) % multiple:
        raise UserError(f"{option} {shape}: columns must be a multiple of {multiple}")
    return int(match[1]), int(match[2])


def at_least(option: str, least: int, *values: int) -> None:
    """Refuse values of an option that are too small.

    Raises:
        UserError: naming the option and the value.
    """
    for value in values:
        if value < least:
            raise UserError(f"{option} {value}: must be at least {least}")


def number(value: float | None, form: str) -> str:
    """A cell of a table, empty for None."""
    return "" if value is None else format(value, form)


def save_json(path: Path | None, value: dict[str, Any]) -> None:
    """Write what `--json` asks for, if it was given.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        return
    try:
        write_json(path, value)
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written: {error.strerror}") from error


def machine() -> dict[str, Any]:
    """The processor, its cores and last-level cache, and the versions of what is measured."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "last_level_cache": last_level_cache(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def last_level_cache() -> int:
    """Bytes of the largest cache that the first core can use."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KMG]?)", path.read_text("utf-8").strip())
        if match:
            sizes.append(int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]])
    return max(sizes, default=UNKNOWN_CACHE)


def read_bandwidth(threads: int, nbytes: int) -> tuple[float, str]:
    """Bytes per second that `threads` threads read from memory, each from its part of `nbytes`, and what read them.

    Several ways are tried that release Python's lock and do next to nothing with what they read, each several times;
    the fastest reading of all counts. It is a lower bound of what the memory can do.

    Args:
        threads: how many read at once.
        nbytes: several times what fits into the last-level cache.
    """
    size = max(nbytes // threads // 64 * 64, 64)
    parts = [np.ones(size // 4, np.float32) for _ in range(threads)]  # ones: pages of zeros need not be there
    ways: dict[str, Callable[[Any], Any]] = {"memchr": _memchr(), "numpy.max": np.max, "numpy.sum": np.sum}
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for name, read in ways.items():
            for _ in range(READINGS):
                started = time.perf_counter()
                list(pool.map(read, parts))
                found.append((size * threads / (time.perf_counter() - started), name))
    return max(found)


def _memchr() -> Callable[[Any], Any]:
    """The C library's search for a byte that is not there: vectors at a time, and no arithmetic to speak of."""
    search = ctypes.CDLL(None).memchr
    search.restype = ctypes.c_void_p
    search.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    return lambda part: search(part.ctypes.data, 1, part.nbytes)
