"""Runs the steps, each in a process of its own that is ended at its limit or when the minutes are over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from device_check.plan import Step
from device_check.record import DONE, Record
from skim_runtime.measure.tables import say

__all__ = ["SITE", "Runner"]

BENCHMARKS = Path(__file__).resolve().parents[1]
SITE = "site"  # below the output directory: what `unpack` installs
ENDED_IN = 5  # seconds that a step has to end after it was asked to
REASON_LENGTH = 300
OF_TOOL = "====="  # with which lines of a tool begin


class Runner:
    """Runs steps and records what they come to.

    Args:
        directory: of the record, of logs (NAME.log) and of what steps write (NAME.json).
        record: is told after every step.
        options: of the command, for the process of each step.
        seconds: that all steps together may take.
    """

    def __init__(self, directory: Path, record: Record, options: Sequence[str], seconds: float) -> None:
        self._directory, self._record, self._options = directory, record, options
        self._end = time.monotonic() + seconds

    def run(self, steps: Iterable[Step]) -> None:
        """Run those that are not done yet, in their order, as long as there is time."""
        for step in steps:
            if step.name in self._record.kept:
                self._say(step, "kept", 0)
                continue
            obstacle = self._obstacle(step)
            started = time.monotonic()
            status, result = (obstacle, None) if obstacle else self._process(step)
            seconds = time.monotonic() - started
            if obstacle is None or not self._record.result(step.name):
                self._record.add(step.name, status, seconds, result)
            self._say(step, status, seconds)

    def _obstacle(self, step: Step) -> str | None:
        """Why a step can't begin."""
        for needed in step.needs:
            if not self._record.done(needed):
                return f"not run: {needed} is not done"
        if step.tool and shutil.which(step.tool[0]) is None:
            return f"not run: {step.tool[0]} is missing"
        if self._end - time.monotonic() < step.expected / 2:
            return "not reached in time"
        return None

    def _command(self, step: Step) -> list[str]:
        return [*step.tool, sys.executable, str(BENCHMARKS), "device-check", "--step", step.name, *self._options]

    def _environment(self, step: Step) -> dict[str, str]:
        found = {**os.environ, "PYTHONUNBUFFERED": "1", **dict(step.environment)}
        if step.with_site:
            _put_first(found, "PYTHONPATH", str(self._directory / SITE))
            # What is installed there looks for CUDA's libraries beside itself.
            _put_first(found, "LD_LIBRARY_PATH", *_cuda_libraries())
        return found

    def _process(self, step: Step) -> tuple[str, dict[str, Any] | None]:
        """Run a step; its status, and what it has written, be it only a part."""
        written, log = self._directory / f"{step.name}.json", self._directory / f"{step.name}.log"
        written.unlink(missing_ok=True)
        limit = min(step.limit, self._end - time.monotonic())
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command(step),
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(step),
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
        result = json.loads(written.read_text("utf-8")) if written.exists() else None
        if code is None:
            return f"ended after {limit:.0f} s", result
        return (DONE if code == 0 else f"failed: {_reason(log, code)}"), result

    def _say(self, step: Step, status: str, seconds: float) -> None:
        left = max(0.0, self._end - time.monotonic())
        say(f"{step.name}: {status}, {seconds:.0f} s of {step.expected} planned; {left:.0f} s are left")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(ENDED_IN)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _reason(log: Path, code: int) -> str:
    """The last line of a log that says something of an error, or else its last line."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line or "wrong" in line]
    own = [line for line in errors if not line.startswith(OF_TOOL)]
    return ((own or errors or lines or [f"exit code {code}"])[-1])[:REASON_LENGTH]


def _put_first(environment: dict[str, str], name: str, *paths: str) -> None:
    """Put paths in front of what a variable has."""
    environment[name] = os.pathsep.join(filter(None, [*paths, environment.get(name)]))


def _cuda_libraries() -> list[str]:
    """Directories of the libraries that torch brings as packages."""
    torch = find_spec("torch")
    origin = Path(torch.origin) if torch is not None and torch.origin else None
    return [] if origin is None else sorted(map(str, origin.parents[1].glob("nvidia/*/lib")))
