"""The kernels for Arm: cross-compiled, and run under emulation on a CPU of each kind that they tell apart."""

import subprocess

import pytest

from ..tools import require
from .native import build_native

COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"

KERNELS = {
    "cortex-a72": "neon reference",
    "cortex-a76": "neon-dotprod neon reference",
    "max": "neon-i8mm neon-dotprod neon reference",
}


def build_for_arm(target):
    """Path of what a CMake target makes, but for its suffix."""
    require(COMPILER, EMULATOR)
    options = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={COMPILER}"]
    # Static, as the emulator has no Arm libraries to load.
    options += ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_EXE_LINKER_FLAGS=-static"]
    return build_native("arm", options, [target]) / target


@pytest.fixture(scope="module")
def kernel_test():
    """Path of the kernel test's program."""
    return build_for_arm("skim_kernel_test")


@pytest.mark.slow
def test_the_operators_compile():
    assert build_for_arm("skim_ops").with_name("libskim_ops.so").is_file()


@pytest.mark.parametrize(
    ("cpu", "columns", "cases"),
    [
        # The last one has the kernels of all; with the others they are also chosen rightly.
        *(pytest.param(cpu, (), 876, id=cpu, marks=pytest.mark.slow) for cpu in KERNELS),
        pytest.param("max", (33, 320), 94, id="some columns"),
    ],
)
def test_kernels_under_emulation(kernel_test, cpu, columns, cases):
    command = [EMULATOR, "-cpu", cpu, kernel_test, *columns]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{cases} cases, 0 failures, kernels: {KERNELS[cpu]}\n"
