"""Builds of the native code that tests run beside the installed library."""

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
