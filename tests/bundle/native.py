"""Bundles for this machine, or another one, with the reference kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from skim_export.bundle.abi import Kernels
from skim_export.bundle.bundle import build_bundle

HERE = Path(__file__).parent
STRICT = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Device:
    """A machine that bundles are compiled for."""

    name: str = "host"
    description: str = "This machine"
    compilers: tuple[str, ...] = ("cc",)
    compiler_flags: tuple[str, ...] = ()

    def compiler(self):
        return shutil.which(self.compilers[0])


def require(tool):
    """Skip a test that needs a tool, or fail it in continuous integration."""
    if shutil.which(tool) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{tool} is not installed")


def run(*command, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([str(part) for part in command], text=True, **options)


def compile_c(compiler, *arguments):
    done = run(compiler, *STRICT, *arguments)
    assert done.returncode == 0, done.stderr


def reference_kernels(device=Device()):  # noqa: B008 - it is immutable
    """A compiler of kernels for `build_bundle`."""

    def compile_kernels(products, gathers):
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "kernels.o"
            compile_c(device.compilers[0], *device.compiler_flags, "-c", HERE / "reference_kernels.c", "-o", file)
            names = {product: f"skim_matmul_{product.row_class.name}" for product in products}
            return Kernels(file.read_bytes(), names)

    return compile_kernels


def bundle(model, output, device=Device()):  # noqa: B008
    build_bundle(model, device, output, reference_kernels(device))
    return output


def compile_runtime(directory, output, flags=()):
    """The program of logits.c on the runtime of a bundle."""
    programs = ("skim_run.c", "skim_example.c")
    runtime = [path for path in sorted(directory.glob("*.c")) if path.name not in programs]
    files = [HERE / "logits.c", *runtime, directory / "skim_kernels.o"]
    compile_c("cc", "-ffp-contract=fast", f"-I{directory}", *flags, "-o", output, *files, "-pthread", "-lm")
    return output


def logits(program, directory, tokens, prompt, threads):
    """Logits `[1 + decoded, V]` that follow the first `prompt` tokens and each of the others."""
    command = [program, directory / "weights.bin", str(threads), str(prompt), *map(str, tokens)]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return np.frombuffer(done.stdout, np.float32).reshape(1 + len(tokens) - prompt, -1)
