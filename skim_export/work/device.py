"""The device that torch calibrates and quantizes on, by the name that a user gives it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from skim_runtime.errors import UserError

if TYPE_CHECKING:
    import torch

__all__ = ["device_named", "float32_products", "free_memory", "synchronize"]


def device_named(name: str) -> torch.device | None:
    """The device "cuda" or "cuda:N"; None for "cpu", where the native solver is at work.

    Raises:
        UserError: the name is another, or torch does not see the device.
    """
    if name == "cpu":
        return None
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise UserError(f"--device {name}: must be cpu, cuda or cuda:N")
    import torch

    count, index = torch.cuda.device_count(), int(match[1] or 0)
    if index >= count:
        seen = "1 CUDA device" if count == 1 else f"{count or 'no'} CUDA device{'s' if count else ''}"
        raise UserError(f"--device {name}: torch sees {seen}")
    return torch.device("cuda", index)


@contextmanager
def float32_products() -> Iterator[None]:
    """Products of float32 matrices are float32 throughout (not TF32), whatever the caller allows torch elsewhere."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def synchronize(device: torch.device | None) -> None:
    """Wait until the device has done what it was told."""
    if device is not None and device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> int:
    """Memory of a CUDA device that is free, in bytes."""
    import torch

    free: int = torch.cuda.mem_get_info(device)[0]
    return free
