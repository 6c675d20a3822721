"""The CPU in a GPU's place: the kernels' sources compiled for it, to try without a GPU what shall run on one."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cmake_build import build
from cuda_check import Case

__all__ = ["StandIn", "emulated_library", "emulated_operators", "is_quick"]

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cuda-on-cpu"


class StandIn:
    """A `Device` that is the CPU. Its cache is said to be small, so that few layers are more than fit into it."""

    place = torch.device("cpu")
    name = "a processor"
    provider = "CPUExecutionProvider"
    cache_bytes = 16 << 10
    has_bfloat16 = True

    def stream(self) -> int:
        """There are no streams."""
        return 0

    def captured(self, call: Callable[[], None]) -> Callable[[], None]:
        """The call itself, after one."""
        call()
        return call

    def seconds(self, call: Callable[[], None], count: int) -> float:
        """Time of `count` calls."""
        started = time.perf_counter()
        for _ in range(count):
            call()
        return time.perf_counter() - started

    def facts(self) -> dict[str, Any]:
        """Its name."""
        return {"name": self.name}


def is_quick(case: Case) -> bool:
    """Whether a processor takes seconds for a case, and not minutes."""
    return case.rows * case.columns * max(case.tokens, 4) < 600_000


def emulated_library() -> Path:
    """The kernels on the CPU, every GPU thread as a fiber (custom_ops/tests/on_cpu).

    Raises:
        UserError: they can't be built.
    """
    return _built("skim_cuda_on_cpu", "on_cpu")


def emulated_operators() -> Path:
    """The operators for CUDA, their kernels on the CPU (custom_ops/tests/ort_on_cpu).

    Raises:
        UserError: they can't be built.
    """
    return _built("skim_ops_on_cpu", "ort_on_cpu")


def _built(target: str, directory: str) -> Path:
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests build there, too
        build(ROOT / "custom_ops", BUILD, target, "-DSKIM_BUILD_TESTS=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O1")
    return BUILD / "tests" / directory / f"lib{target}.so"
