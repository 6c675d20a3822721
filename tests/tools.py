"""What a machine may lack: tests that need it are skipped, but fail in continuous integration."""

import os
import shutil
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

CUDA_PACKAGES = {"nvcc": "nvidia-cuda-nvcc", "nvdisasm": "nvidia-cuda-nvdisasm"}


def missing(what):
    """Skip the test, or the module that is being collected; fail in continuous integration."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed", allow_module_level=True)


def require(*commands):
    for command in commands:
        if shutil.which(command) is None:
            missing(f"{command} (PyPI: {CUDA_PACKAGES[command]})" if command in CUDA_PACKAGES else command)


def require_packages(*names):
    for name in names:
        if find_spec(name) is None:
            missing(f"the package {name}")


def add_cuda_tools_to_path():
    """What PATH lacks of them: from CUDA_PATH, or else from the Python packages, which the extra `dev` brings."""
    for command, package in CUDA_PACKAGES.items():
        places = [Path(os.environ.get("CUDA_PATH", os.devnull), "bin", command), *packaged(package, command)]
        found = next((place for place in places if place.is_file()), None)
        if found is not None and shutil.which(command) is None:
            os.environ["PATH"] += f"{os.pathsep}{found.parent}"


def packaged(package, command):
    """Files of the name `command` in an installed package."""
    with suppress(metadata.PackageNotFoundError):
        return [Path(file.locate()) for file in metadata.files(package) or [] if file.name == command]
    return []
