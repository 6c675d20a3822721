"""Bundles with the reference kernels, and programs on their runtime."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skim_export.bundle.abi import Kernels
from skim_export.bundle.bundle import build_bundle

HERE = Path(__file__).parent
RUNTIME = HERE.parents[1] / "skim_export" / "bundle" / "c"
PROGRAMS = ("skim_run.c", "skim_example.c")
PREPARE = ("skim_prepare", "skim_prepare_integer")
SANITIZERS = {
    "none": ["-O1"],
    "memory": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "threads": ["-O1", "-g", "-fsanitize=thread"],
}
STRICT = ("-std=c11", "-ffp-contract=fast", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Device:
    """A machine that bundles are compiled for; by default this one, on which nothing is compiled."""

    name: str = "host"
    description: str = "This machine"
    compiler_name: str = "cc"
    compiler_flags: tuple[str, ...] = ()
    compiler_package: str | None = None
    compiles: bool = False

    def compiler(self):
        return shutil.which(self.compiler_name) if self.compiles else None


def run(*command, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([str(part) for part in command], text=True, **options)


def compile_c(compiler, *arguments):
    done = run(compiler, *STRICT, *arguments)
    assert done.returncode == 0, done.stderr


def reference_kernels(compiler="cc"):
    """A compiler of kernels for `build_bundle`."""

    def compile_kernels(products, gathers):
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "kernels.o"
            compile_c(compiler, "-O2", "-c", HERE / "reference_kernels.c", "-o", file)
            names = {p: f"skim_matmul_{p.row_class.name}" for p in products}  # they serve every arithmetic
            return Kernels(file.read_bytes(), names)

    return compile_kernels


def bundle(model, output, device=None):
    """Write a bundle and return its directory."""
    device = device or Device()
    build_bundle(model, device, output, reference_kernels(device.compiler_name))
    return output


def compile_runtime(directory, flags, program=HERE / "logits.c"):
    """Compile a program and all of the runtime that is the same for all models, and return the object files."""
    sources = [program, *(path for path in sorted(RUNTIME.glob("*.c")) if path.name not in PROGRAMS)]
    objects = [directory / f"{source.stem}.o" for source in sources]
    declared = "".join(f"void {name}(const float*, const float*, void*, int, int);\n" for name in PREPARE)
    (directory / "skim_kernels.h").write_text(declared)
    for source, file in zip(sources, objects, strict=True):
        compile_c("cc", *flags, f"-I{RUNTIME}", f"-I{directory}", "-c", source, "-o", file)
    return objects


def link_program(bundle_directory, objects, output, flags):
    """A program that was compiled with the runtime, for a bundle."""
    rest = [bundle_directory / "skim_model.c", bundle_directory / "skim_kernels.o"]
    compile_c("cc", *flags, *objects, *rest, "-o", output, "-pthread", "-lm")
    return output


def logits(program, directory, tokens, prompt, threads):
    """Logits `[1 + decoded, V]` that follow the first `prompt` tokens and each of the others."""
    command = [program, directory / "weights.bin", str(threads), str(prompt), *map(str, tokens)]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return np.frombuffer(done.stdout, np.float32).reshape(1 + len(tokens) - prompt, -1)
