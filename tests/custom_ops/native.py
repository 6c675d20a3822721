"""Builds of the native code that tests run beside the installed library."""

import fcntl
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from ..tools import missing

ROOT = Path(__file__).parents[2]
# CMake targets. Those that have nothing to do with CUDA are there since the kernels for the CPU are compiled anyway.
CUDA_ON_CPU = ("skim_cuda_on_cpu", "skim_emulation_test", "skim_ops_on_cpu", "skim_fuzz_packed")


def build_native(name, options, targets=("skim_ops", "skim_kernel_test"), root=ROOT):
    """Build CMake targets in `build/NAME` of `root`, kept between runs; that directory."""
    directory = root / "build" / name
    directory.mkdir(parents=True, exist_ok=True)
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests in another process may want the same
        for command in (
            ["cmake", *generator, "-S", root / "custom_ops", "-B", directory, "-DSKIM_BUILD_TESTS=ON", *options],
            ["cmake", "--build", directory, "--parallel", "2", "--target", *targets],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return directory


def build_cuda_on_cpu():
    """Build the CUDA kernels for the CPU, their operators and the emulation's own test; the directory of the kernels.

    The environment variable SKIM_TEST_CUDA_ON_CPU names another build.
    """
    if directory := os.environ.get("SKIM_TEST_CUDA_ON_CPU"):
        return Path(directory)
    # At -O1 they compile in half the time, and the tests take no longer.
    release = ("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1")
    return build_native("cuda-on-cpu", release, CUDA_ON_CPU) / "tests" / "on_cpu"


def build_sanitized(sanitizers=("address", "undefined"), **options):
    """`build_native` with AddressSanitizer and UndefinedBehaviorSanitizer, or with others."""
    if platform.system() != "Linux" or not all(map(sanitizer, sanitizers)):
        missing(f"the library of {' or '.join(sanitizers)} sanitizer, for the compiler,")
    # At -O3, or with every check written out inline, the kernels take minutes to compile.
    flags = "-DCMAKE_CXX_FLAGS=-O1 -g1 --param asan-instrumentation-with-call-threshold=0"
    sanitize = f"-DSKIM_SANITIZE={','.join(sanitizers)}"
    return build_native(f"sanitizers-{sanitizers[0]}", ["-DCMAKE_BUILD_TYPE=None", flags, sanitize], **options)


def sanitizer(name):
    """Path of a sanitizer's shared library, None if the compiler has none."""
    compiler = os.environ.get("CXX", "c++")
    name = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}[name]
    path = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    return path if Path(path).is_absolute() else None


def run_tests(modules, selection="", **environment):
    """Run test modules in a process of their own, up to the first failure; the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", selection, *map(str, modules)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=ROOT,
    )


def run_sanitized_tests(modules, selection="", **environment):
    """`run_tests` for a library with sanitizers; all must pass."""
    done = run_tests(
        modules,
        selection,
        LD_PRELOAD=f"{sanitizer('address')} {sanitizer('undefined')}",
        # Python and onnxruntime were not built for the sanitizers: only what our library does is of interest.
        ASAN_OPTIONS="detect_leaks=0:alloc_dealloc_mismatch=0",
        **environment,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
