"""The CUDA kernels, compiled for the CPU (custom_ops/tests/on_cpu)."""

import sys

import pytest

from ..native import ROOT, build_cuda_on_cpu

sys.path.insert(0, str(ROOT / "benchmarks"))  # run as a directory, not installed


@pytest.fixture(scope="session")
def on_cpu():
    """Directory of the libraries; test_sanitizers.py names another one."""
    return build_cuda_on_cpu()


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
