"""Fixtures that several test packages share."""

import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from skim_export import export
from skim_export.calibration import statistics, text
from skim_export.checkpoint import resolve
from skim_export.pipeline import cost

from .elsewhere import elsewhere, in_this_thread
from .exported import Exported, build
from .tools import add_cuda_tools_to_path

# TVM's pool of threads belongs to the process and never grows: whoever uses it first must leave enough for all tests.
os.environ["TVM_NUM_THREADS"] = "2"

add_cuda_tools_to_path()

# Where the suite was started with Ctrl-C ignored (nohup, some runners), tests and their children would ignore it, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Directory of the embedded default model; the first run downloads it (93 MB), later ones find it in the cache."""
    return resolve("smollm2-135m")


@pytest.fixture(scope="session")
def smollm2_3bit(smollm2, tmp_path_factory) -> Path:
    """Directory of that model as `make demo` exports it, with every default, at 3 bits; takes minutes."""
    directory = tmp_path_factory.mktemp("smollm2-3bit")
    export("smollm2-135m", directory / "model.onnx", bits=3)
    return directory


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Gives the export of a case of `tiny_decoders.DECODERS` by name, made once."""
    return cache(lambda name: build(name, tmp_path_factory.mktemp(name)))


@pytest.fixture
def second_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A device that stands for a GPU, see `elsewhere.py`."""
    for module in (cost, statistics, text):
        monkeypatch.setattr(module, "workers", in_this_thread)
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # the wrappers do not know it
    with elsewhere() as device:
        yield device
