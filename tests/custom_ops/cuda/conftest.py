"""The CUDA kernels, compiled for the CPU (custom_ops/tests/on_cpu)."""

import os
import sys
from pathlib import Path

import pytest

from ..native import ROOT, build_native

sys.path.insert(0, str(ROOT / "benchmarks"))  # run as a directory, not installed: for its cuda_library

TARGETS = ("skim_cuda_on_cpu", "skim_emulation_test")


@pytest.fixture(scope="session")
def on_cpu():
    """Directory of the libraries; test_sanitizers.py names another one."""
    if directory := os.environ.get("SKIM_TEST_CUDA_ON_CPU"):
        return Path(directory)
    return build_native("cuda-on-cpu", ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O2"], TARGETS) / (
        "tests/on_cpu"
    )


@pytest.fixture(autouse=True)
def _messages(capfd):
    """What the emulation says before it aborts must not be lost with the process."""
    with capfd.disabled():
        yield


@pytest.fixture(params=["forward", "reverse", "shuffled"])
def order(request, monkeypatch):
    """The order that GPU threads run in."""
    monkeypatch.setenv("SKIM_CUDA_ORDER", request.param)
    return request.param
