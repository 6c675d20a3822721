"""SKIM_CUDA: what it takes, and that a library with kernels for GPUs is the same on a machine without."""

import subprocess

import pytest

from skim_runtime.library import cuda_version

from ...tools import missing, require
from ..native import ROOT, build_native, run_tests


def configure(build, *options):
    return subprocess.run(
        ["cmake", "-S", str(ROOT / "custom_ops"), "-B", str(build), *options], capture_output=True, text=True
    )


def test_on_needs_the_toolkit(tmp_path):
    without = "-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON"
    done = configure(tmp_path, "-DSKIM_CUDA=on", without)
    assert done.returncode != 0
    assert "SKIM_CUDA=on needs the CUDA toolkit" in done.stderr
    assert configure(tmp_path, "-DSKIM_CUDA=auto", without).returncode == 0


def test_other_values_are_refused(tmp_path):
    assert "SKIM_CUDA must be on, off or auto, got perhaps" in configure(tmp_path, "-DSKIM_CUDA=perhaps").stderr


@pytest.mark.slow
def test_a_library_with_kernels_for_gpus_runs_on_the_cpu(tmp_path):
    require("nvcc")
    if "SKIM_CUDA=on needs the CUDA toolkit" in configure(tmp_path, "-DSKIM_CUDA=on").stderr:
        missing("the whole CUDA toolkit (PyPI's nvcc comes without the library that programs are linked with)")
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DSKIM_CUDA=on", "-DSKIM_CUDA_ARCHITECTURES=90"]
    library = build_native("cuda", options) / "libskim_ops.so"
    assert cuda_version(library) >= 12000
    done = run_tests([ROOT / "tests/custom_ops/test_matmul.py"], SKIM_TEST_LIBRARY=str(library))
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
