"""The kernels and the operators once more, built with AddressSanitizer and UndefinedBehaviorSanitizer."""

import subprocess
from pathlib import Path

import pytest

from skim_runtime.library import kernel_name

from .native import build_sanitized, run_sanitized_tests

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def build():
    return build_sanitized()


def test_kernels_on_exact_blocks(build):
    """Tensors in heap blocks of exactly their size: any access outside of them ends the program."""
    done = subprocess.run([str(build / "skim_kernel_test")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "648 cases, 0 failures" in done.stdout


def test_operators(build):
    modules = [Path(__file__).parent / f"test_{name}.py" for name in ("matmul", "gather", "refusals", "read_memory")]
    # The reference kernels have had their turn in test_kernels_on_exact_blocks.
    selection = "" if kernel_name() == "reference" else "not reference"
    run_sanitized_tests(modules, selection, SKIM_TEST_LIBRARY=str(build / "libskim_ops.so"))
