"""Kernels in a C program of their own: it runs here, or under an emulator that counts instructions."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skim_export.bundle.target import CpuTarget
from skim_runtime.errors import UserError

__all__ = ["Call", "Program"]

# The name of a function and its arguments: an int, an array that is read, or the shape of the float32 array that is
# written.
Call = tuple[Any, ...]

NAME_BYTES = 64
INTEGER, READ, WRITTEN = range(3)


class Program:
    """A program with some functions of an object file.

    Args:
        object_file: its bytes.
        functions: names of those that can be called.
        target: what to compile for.
        directory: where the program and what it reads and writes are kept.

    Attributes:
        emulated: whether it runs under the target's emulator.

    Raises:
        UserError: the compiler is missing, or the emulator where the program does not run here.
    """

    def __init__(self, object_file: bytes, functions: Iterable[str], target: CpuTarget, directory: Path) -> None:
        self._emulator: list[str] = []
        if missing := target.missing_here():
            if not target.emulator:
                raise UserError(f"target {target.name} does not run here, and has no emulator: {missing}")
            if shutil.which(target.emulator[0]) is None:
                raise UserError(f"target {target.name} needs {target.emulator[0]} to run here: apt install qemu-user")
            self._emulator = list(target.emulator)
        self.emulated = bool(self._emulator)
        self._directory = directory
        names = list(functions)
        (directory / "kernels.o").write_bytes(object_file)
        (directory / "functions.inc").write_text("".join(f'{{"{name}", (function){name}}},\n' for name in names))
        declarations = "".join(f"void {name}(void);\n" for name in names)
        (directory / "driver.c").write_text(declarations + _source("kernel_driver.c"))
        compiler = [target.require_compiler(), *target.compiler_flags, "-O1", "-static", "-o", "driver"]
        _compile([*compiler, "driver.c", "kernels.o"], directory)

    def run(self, calls: Sequence[Call]) -> list[npt.NDArray[np.float32]]:
        """The array that each call writes.

        Raises:
            RuntimeError: the program failed, or wrote behind the end of an array.
        """
        shapes = self._write(calls)
        self._execute([], 1)
        results = np.fromfile(self._directory / "results", np.float32)
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        if len(results) != ends[-1]:
            raise RuntimeError(f"{len(results)} results of {ends[-1]}")
        return [part.reshape(shape) for part, shape in zip(np.split(results, ends[:-1]), shapes, strict=True)]

    def instructions(self, call: Call, repetitions: int = 2) -> float:
        """Instructions that a call takes; those of the program around it are left out.

        Raises:
            UserError: the emulator could not count.
        """
        self._write([call])
        plugin = ["-plugin", f"./{self._plugin()}"]
        counts = []
        for count in (1, 1 + repetitions):
            found = re.search(r"instructions: (\d+)", self._execute(plugin, count))
            if found is None:
                raise UserError(f"{self._emulator[0]} does not count instructions: its plugin interface is another one")
            counts.append(int(found[1]))
        return (counts[1] - counts[0]) / repetitions

    def _plugin(self) -> str:
        """The emulator's plugin that counts, compiled for this machine."""
        name = "count.so"
        if not (self._directory / name).exists():
            compiler = shutil.which("cc")
            if compiler is None:
                raise UserError("counting instructions needs a C compiler for this machine: apt install gcc")
            (self._directory / "count.c").write_text(_source("count_instructions.c"))
            _compile([compiler, "-shared", "-fPIC", "-O2", "-o", name, "count.c"], self._directory)
        return name

    def _write(self, calls: Sequence[Call]) -> list[tuple[int, ...]]:
        data = bytearray()
        shapes: list[tuple[int, ...]] = []
        for name, *arguments in calls:
            data += name.encode().ljust(NAME_BYTES, b"\0") + struct.pack("<i", len(arguments))
            for argument in arguments:
                if isinstance(argument, int):
                    data += struct.pack("<iii", INTEGER, 4, argument)
                elif isinstance(argument, tuple):
                    data += struct.pack("<ii", WRITTEN, 4 * int(np.prod(argument)))
                    shapes.append(argument)
                else:
                    data += struct.pack("<ii", READ, argument.nbytes) + argument.tobytes()
        (self._directory / "calls").write_bytes(data)
        return shapes

    def _execute(self, emulator_options: Sequence[str], repetitions: int) -> str:
        emulator = [*self._emulator, *emulator_options] if self._emulator else []
        command = [*emulator, "./driver", "calls", "results", str(repetitions)]
        done = subprocess.run(command, cwd=self._directory, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed with code {done.returncode}: {done.stderr.strip()}")
        return done.stderr


def _source(name: str) -> str:
    return resources.files("skim_export.measure.running").joinpath(name).read_text("utf-8")


def _compile(command: Sequence[str], directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"{command[0]} failed: {done.stderr.strip().splitlines()[0]}")
