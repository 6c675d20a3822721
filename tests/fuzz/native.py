"""Inputs of native code: packed weights as the kernels get them, and the file of weights of a bundle."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from skim_runtime.errors import UserError

from ..bundle.models import export_tiny
from ..bundle.native import HERE, bundle, compile_runtime, link_program
from ..custom_ops.native import build_cuda_on_cpu, build_sanitized
from .inputs import PROCESSES, Result

__all__ = ["try_bundles", "try_operators"]

SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
MODELS = ("llama", "windowed", "all_widths", "biased")
PROGRAM = "skim_fuzz_packed"


def try_operators(seed: int, first: int, count: int, *, sanitized: bool = True) -> Result:
    """Packed weights; without sanitizers, only accesses behind a tensor are noticed, and the build takes less."""
    directory = build_sanitized(targets=(PROGRAM,)) if sanitized else build_cuda_on_cpu().parents[1]
    return _in_parts(lambda first, count: [directory / PROGRAM, seed, first, count], first, count)


def try_bundles(seed: int, first: int, count: int) -> Result:
    """Weights of bundles, in turn of several models."""
    result = Result()
    with tempfile.TemporaryDirectory(prefix="skim-fuzz-") as name:
        place = Path(name)
        (place / "runtime").mkdir()
        runtime = compile_runtime(place / "runtime", SANITIZED, HERE / "fuzz.c")
        for index, model in enumerate(MODELS):
            directory = bundle(export_tiny(model, place / model).path, place / f"{model}-bundle")
            program = link_program(directory, runtime, directory / "fuzz", SANITIZED)

            def command(first: int, count: int, directory: Path = directory, program: Path = program) -> list[object]:
                weights = shutil.copy(directory / "weights.bin", directory / f"weights-{first}.bin")
                return [program, weights, seed, first, count]

            begin, end = (first + count * part // len(MODELS) for part in (index, index + 1))
            result.add(_in_parts(command, begin, end - begin))
    return result


def _in_parts(command: Callable[[int, int], list[object]], first: int, count: int) -> Result:
    """Run a program that tries inputs for `PROCESSES` parts of them."""
    result = Result()
    ends = [first + count * part // PROCESSES for part in range(PROCESSES + 1)]
    with ThreadPoolExecutor(PROCESSES) as pool:
        for part in pool.map(lambda i: _run(command(ends[i], ends[i + 1] - ends[i])), range(PROCESSES)):
            result.add(part)
    return result


def _run(command: list[object]) -> Result:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    summary = re.search(r"^(\d+) inputs, (\d+) accepted, \d+ findings$", done.stdout, re.MULTILINE)
    if done.returncode == 2:
        raise UserError(done.stderr)
    if summary is None:
        return Result(
            0, 0, [f"{Path(str(command[0])).name} {command[1:]} ended with code {done.returncode}: {done.stderr}"]
        )
    return Result(int(summary[1]), int(summary[2]), re.findall(r"^input .*", done.stdout, re.MULTILINE))
