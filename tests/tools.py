"""What a machine may lack: tests that need it are skipped, but fail in continuous integration."""

import os
import shutil
from importlib.util import find_spec

import pytest


def missing(what):
    """Skip the test, or the module that is being collected; fail in continuous integration."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed", allow_module_level=True)


def require(*commands):
    for command in commands:
        if shutil.which(command) is None:
            missing(command)


def require_packages(*names):
    for name in names:
        if find_spec(name) is None:
            missing(f"the package {name}")
