"""Builds of the native code that tests run beside the installed library."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build_native(name, options, targets=("skim_ops", "skim_kernel_test")):
    """Build CMake targets in `build/NAME`, kept between runs; the directory of those of custom_ops/."""
    directory = ROOT / "build" / name
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    for command in (
        ["cmake", *generator, "-S", str(ROOT), "-B", str(directory), "-DSKIM_BUILD_TESTS=ON", *options],
        ["cmake", "--build", str(directory), "--parallel", "2", "--target", *targets],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return directory / "custom_ops"


def build_cuda_on_cpu():
    """Build the CUDA kernels for the CPU, and the emulation's own test; the directory of both libraries.

    The environment variable SKIM_TEST_CUDA_ON_CPU names another build.
    """
    if directory := os.environ.get("SKIM_TEST_CUDA_ON_CPU"):
        return Path(directory)
    release = ("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O2")
    return build_native("cuda-on-cpu", release, ("skim_cuda_on_cpu", "skim_emulation_test")) / "tests" / "on_cpu"
