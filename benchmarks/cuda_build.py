"""Compiling the CUDA kernels of the source tree with nvcc; results are kept, by a hash of all that they depend on."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from skim_runtime.errors import UserError

__all__ = ["CUDA", "Nvcc", "is_for", "kernel_sources"]

ROOT = Path(__file__).resolve().parents[1]
CUDA = ROOT / "custom_ops" / "cuda"
INCLUDES = (ROOT / "custom_ops" / "include", CUDA, CUDA / "gpu")
OPTIONS = ("-O3", "-std=c++17", "--expt-relaxed-constexpr", *(f"-I{path}" for path in INCLUDES))
HOPPER = "_hopper"  # in the names of those that use its own instructions
CUDA_BUILD = ROOT / "build" / "cuda"


def kernel_sources() -> list[Path]:
    """The translation units that hold kernels."""
    return sorted(CUDA.glob("*.cu"))


def is_for(source: Path, architecture: str) -> bool:
    """Whether a translation unit is compiled for an architecture ("sm_90"): some are for Hopper only."""
    return HOPPER not in source.stem or architecture == "sm_90"


def target(source: Path, architecture: str) -> str:
    """The option that compiles for an architecture by way of the PTX that the operator library takes, too."""
    number = architecture.removeprefix("sm_")
    if HOPPER in source.stem:
        number = "90a"
    if number == "90a":
        return "-gencode=arch=compute_90a,code=sm_90a"
    return f"-gencode=arch=compute_{80 if int(number) >= 80 else 75},code=sm_{number}"


class Nvcc:
    """The CUDA compiler.

    Raises:
        UserError: there is none.
    """

    def __init__(self) -> None:
        path = shutil.which("nvcc")
        if path is None:
            raise UserError("nvcc is missing: install the CUDA toolkit, and have its bin directory in PATH")
        self._nvcc = path
        self._version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout

    def library(self, architecture: str) -> Path:
        """A library of the kernels with their C interface (custom_ops/cuda/c_api.cpp) for one architecture ("sm_80").

        Raises:
            UserError: nvcc refuses.
        """
        sources = [s for s in (*kernel_sources(), *sorted(CUDA.glob("*.cpp"))) if is_for(s, architecture)]
        options = ("-c", "-Xcompiler", "-fPIC", *(["-DSKIM_CUDA_HOPPER"] if architecture == "sm_90" else []), *OPTIONS)

        def compiled(source: Path) -> Path:
            return self._compiled(f"{source.name}.o", [source], (target(source, architecture), *options))

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            objects = list(pool.map(compiled, sources))
        return self._compiled("libskim_cuda.so", objects, ("-shared", f"-arch={architecture}"))

    def cubin(self, source: Path, architecture: str) -> Path:
        """The machine code of one translation unit; beside it lies what the assembler reports, `.txt`.

        Raises:
            UserError: nvcc refuses.
        """
        options = ("-cubin", "-Xptxas", "-v", target(source, architecture), *OPTIONS)
        return self._compiled(f"{source.stem}.{architecture}.cubin", [source], options)

    def _compiled(self, name: str, sources: Sequence[Path], options: Sequence[str]) -> Path:
        directory = CUDA_BUILD / self._key(sources, options)
        target = directory / name
        if target.exists():
            return target
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / f"{os.getpid()}.{name}"
        command = [self._nvcc, *options, "-o", str(partial), *map(str, sources)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            output = (done.stderr + done.stdout).splitlines()
            reason = next((line for line in output if "error" in line), output[0] if output else "it gave no reason")
            raise UserError(f"nvcc cannot make {name}: {reason.strip()}")
        target.with_suffix(".txt").write_text(done.stderr, "utf-8")
        partial.replace(target)
        return target

    def _key(self, sources: Sequence[Path], options: Sequence[str]) -> str:
        """A hash of the compiler, its options, the sources and every header that they could include."""
        headers = (path for directory in INCLUDES for path in sorted(directory.rglob("*.*h")))
        digest = hashlib.sha256(repr((self._version, options)).encode())
        for path in (*sources, *headers):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]
