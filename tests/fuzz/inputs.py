"""Trying many inputs in processes of their own, which may crash or hang."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO

ROOT = Path(__file__).parents[2]
SECONDS = 60  # for one input, and for a process to start
PROCESSES = 2


@dataclass
class Result:
    """What came of some inputs.

    Attributes:
        inputs: how many were tried.
        accepted: how many of them did something; the others were refused.
        findings: what is wrong, by input.
    """

    inputs: int = 0
    accepted: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, other: Result) -> None:
        self.inputs += other.inputs
        self.accepted += other.accepted
        self.findings += other.findings


def try_inputs(target: str, seed: int, first: int, count: int) -> Result:
    """Try the inputs `first` to `first + count - 1` of a target, the name of a module with `make` and `attempt`."""
    result = Result()
    with tempfile.TemporaryDirectory(prefix="skim-fuzz-") as original:
        code = f"from {__package__}.{target} import make; from pathlib import Path; make(Path({original!r}))"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
        with ThreadPoolExecutor(PROCESSES) as pool:
            for part in pool.map(lambda i: _in_turn(target, original, seed, first + i, count - i), range(PROCESSES)):
                result.add(part)
    return result


def _in_turn(target: str, original: str, seed: int, first: int, count: int) -> Result:
    """Every `PROCESSES`-th input; after a crash a new process goes on behind the input that caused it."""
    result, end = Result(), first + count
    while first < end:
        arguments = [target, original, seed, first, end - first, PROCESSES]
        with subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.child", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ) as child:
            begun = _follow(child, result)
        if begun is None:
            break
        first = begun + PROCESSES
    return result


def _follow(child: subprocess.Popen[str], result: Result) -> int | None:
    """Read what a process says until it ends; the input that ended it, None if it came to its end."""
    lines: Queue[str] = Queue()
    assert child.stdout is not None
    Thread(target=_read, args=(child.stdout, lines), daemon=True).start()
    begun = None
    while True:
        try:
            word, _, rest = lines.get(timeout=SECONDS).strip().partition(" ")
        except Empty:
            child.kill()
            child.wait()
            word, rest = "finding", f"takes more than {SECONDS} seconds"
        if word == "begin":
            begun = int(rest)
            continue
        if begun is None:
            if word == "" and child.wait() == 0:
                return None
            raise RuntimeError(f"the process ends without an input, with code {child.wait()}")
        if word == "":
            rest = f"the process ended with code {child.wait()}"
        result.inputs += 1
        result.accepted += word == "accepted"
        if word in ("finding", ""):
            result.findings.append(f"input {begun}: {rest}")
        if child.returncode is not None:
            return begun
        begun = None


def _read(stream: IO[str], lines: Queue[str]) -> None:
    """Put every line into the queue, and an empty one for the end."""
    for line in stream:
        lines.put(line)
    lines.put("")
