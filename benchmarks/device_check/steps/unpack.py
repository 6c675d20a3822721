"""Joins what was carried in parts, and installs the packages among it where only some steps look."""

from __future__ import annotations

import subprocess
import sys

from device_check.parcels import unpack
from device_check.runner import SITE
from device_check.work import Work
from skim_runtime.errors import UserError
from skim_runtime.measure.tables import say

__all__ = ["CARGO", "run"]

CARGO = "cargo"  # below the output directory: what the parts held


def run(work: Work) -> None:
    """Unpack and install.

    Raises:
        UserError: parts are missing, or pip refuses a wheel.
    """
    if work.parts is None:
        raise UserError("--parts is not given: nothing was carried")
    cargo = work.directory / CARGO
    unpack(work.parts, cargo)
    wheels = sorted(cargo.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
    if wheels:
        command = [*pip, "--target", str(work.directory / SITE), *map(str, wheels)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        say(done.stdout + done.stderr)
        if done.returncode:
            raise UserError(f"pip refuses the wheels: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    models = [path.parent.name for path in sorted(cargo.glob("*/model.onnx"))]
    work.save({"wheels": [wheel.name for wheel in wheels], "models": models})
