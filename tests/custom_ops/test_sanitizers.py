"""The kernels and the operators once more, built with AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from skim_runtime.library import kernel_name

from .native import ROOT, build_native


def runtime(name):
    """Path of a sanitizer's shared library, None if the compiler has none."""
    compiler = os.environ.get("CXX", "c++")
    path = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    return path if Path(path).is_absolute() else None


@pytest.fixture(scope="module")
def build():
    if platform.system() != "Linux" or not (runtime("libasan.so") and runtime("libubsan.so")):
        pytest.skip("the compiler has no libasan.so and libubsan.so")
    # At -O3, or with every check written out inline, the kernels take minutes to compile.
    options = [
        "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_CXX_FLAGS=-O1 -g1 --param asan-instrumentation-with-call-threshold=0",
    ]
    options += ["-DSKIM_SANITIZE=address,undefined"]
    return build_native("sanitizers", options)


def test_kernels_on_exact_blocks(build):
    """Tensors in heap blocks of exactly their size: any access outside of them ends the program."""
    done = subprocess.run([str(build / "skim_kernel_test")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "648 cases, 0 failures" in done.stdout


def test_operators(build):
    environment = os.environ | {
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
        # Python and onnxruntime were not built for the sanitizers: only what our library does is of interest.
        "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0",
        "SKIM_TEST_LIBRARY": str(build / "libskim_ops.so"),
    }
    modules = [str(Path(__file__).parent / f"test_{name}.py") for name in ("matmul", "gather", "refusals")]
    # The reference kernels have had their turn in test_kernels_on_exact_blocks.
    selection = [] if kernel_name() == "reference" else ["-k", "not reference"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *selection, *modules],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
