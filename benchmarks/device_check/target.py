"""What the steps run on: a GPU with the sizes that tell something, or its stand-in with sizes that end soon."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cuda_build import Nvcc
from cuda_check import Case, cases
from cuda_device import Device, Gpu, Kernels
from cuda_library import CudaLibrary
from cuda_stand_in import StandIn, emulated_library, is_quick

__all__ = ["REAL", "REHEARSED", "Sizes", "Target"]


@dataclass(frozen=True)
class Sizes:
    """What is asked.

    Attributes:
        every: takes each so-manieth case of the grid.
        shapes: N and K of the layers that are timed, by name.
        widths: of their rows.
        decode: numbers of tokens.
        prefill: numbers of tokens.
        beside_nbits: numbers of tokens.
        rounds: medians are over so many.
        quantized: N and K of the layer that is quantized.
        compared: N and K of the layer that is quantized on the CPU, too.
        prompt: tokens before a model writes.
        new: tokens that it writes.
    """

    every: int
    shapes: tuple[tuple[int, int], ...]
    widths: tuple[str, ...]
    decode: tuple[int, ...]
    prefill: tuple[int, ...]
    beside_nbits: tuple[int, ...]
    rounds: int
    quantized: tuple[int, int]
    compared: tuple[int, int]
    prompt: int
    new: int


REAL = Sizes(
    every=1,
    shapes=((14336, 4096), (4096, 4096), (4096, 14336), (28672, 8192), (128256, 4096)),
    widths=("2 bits", "3 bits", "3 bits in floats", "2, 3 and 4 bits", "4 bits", "6 bits", "8 bits"),
    decode=(1, 2, 4, 8, 16),
    prefill=(128, 512, 2048),
    beside_nbits=(1, 16, 2048),
    rounds=5,
    quantized=(14336, 4096),
    compared=(256, 4096),
    prompt=128,
    new=64,
)
REHEARSED = dataclasses.replace(
    REAL,
    every=29,
    shapes=((96, 64), (64, 96)),
    decode=(1, 2),
    prefill=(20,),
    beside_nbits=(1,),
    rounds=2,
    quantized=(64, 128),
    compared=(32, 128),
    prompt=8,
    new=4,
)


class Target:
    """What the steps run on.

    Attributes:
        stand_in: whether it is the stand-in.
        sizes: that are asked of it.

    Raises:
        UserError: there is no GPU.
    """

    def __init__(self, *, stand_in: bool) -> None:
        self.stand_in = stand_in
        self.sizes = REHEARSED if stand_in else REAL
        self.device: Device = StandIn() if stand_in else Gpu()

    def library(self) -> Path:
        """The kernels, compiled at the first call."""
        if isinstance(self.device, Gpu):
            return Nvcc().library(self.device.architecture)
        return emulated_library()

    @cached_property
    def kernels(self) -> Kernels:
        """The kernels, loaded."""
        return Kernels(CudaLibrary(self.library()), self.device)

    def cases(self) -> Iterator[Case]:
        """Of the grid."""
        grid = [case for case in cases() if is_quick(case)] if self.stand_in else list(cases())
        yield from grid[:: self.sizes.every]
