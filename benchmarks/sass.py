"""The machine code of CUDA kernels: what nvdisasm says of a cubin, and the loops in it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

from skim_runtime.errors import UserError

__all__ = ["Function", "Instruction", "disassemble", "find_nvdisasm"]

INSTRUCTION_BYTES = 16
END = -1
PACKAGE = "nvidia-cuda-nvdisasm"


@dataclass(frozen=True)
class Instruction:
    """One instruction of a warp.

    Attributes:
        opcode: with its modifiers, such as `LDG.E.128.CONSTANT`.
        operands: as nvdisasm writes them.
        predicate: such as `@!P0`, or empty.
    """

    opcode: str
    operands: str
    predicate: str

    @cached_property
    def modifiers(self) -> tuple[str, ...]:
        """The parts of the opcode, the operation itself first."""
        return tuple(self.opcode.split("."))

    @property
    def operation(self) -> str:
        """The opcode without modifiers."""
        return self.modifiers[0]

    @property
    def nbytes(self) -> int:
        """What a thread moves with it, if it moves anything."""
        return next((int(size) // 8 for size in ("128", "64") if size in self.modifiers), 4)

    @property
    def is_wide_load(self) -> bool:
        """Whether it loads 16 bytes a thread from global memory."""
        return self.operation == "LDG" and "128" in self.modifiers


@dataclass(frozen=True)
class Function:
    """The instructions of a kernel.

    Attributes:
        name: its mangled name.
        instructions: in the order of their addresses.
    """

    name: str
    instructions: tuple[Instruction, ...]

    def next(self, at: int) -> tuple[int, ...]:
        """The numbers of the instructions that may come after instruction `at`; functions are taken to return at once.

        A call of an address, not of a name, is a jump. After a trap comes nothing.
        """
        instruction = self.instructions[at]
        target = instruction.operands.split(",")[-1]
        conditional = instruction.predicate or "," in instruction.operands or "CONV" in instruction.modifiers
        if instruction.operation in ("BRA", "CALL") and target.startswith("0x"):
            jump = int(target, 16) // INSTRUCTION_BYTES
            return (at + 1, jump) if conditional else (jump,)
        if instruction.operation in ("EXIT", "RET", "BPT") and not conditional:
            return ()
        return (at + 1,) if at + 1 < len(self.instructions) else ()

    def loops(self) -> Iterator[range]:
        """The numbers of the instructions of each loop: what a jump backwards spans.

        What comes after the last end of the kernel is code that was moved out of the way, and jumps back from there.
        """
        ends = [at for at, instruction in enumerate(self.instructions) if instruction.operation == "EXIT"]
        for end in range(ends[-1] + 1 if ends else len(self.instructions)):
            for target in self.next(end):
                if target < end:
                    yield range(target, end + 1)

    def path(self, worth: Callable[[int], int]) -> list[int]:
        """The shortest way to an end, among those whose instructions, by number, are worth most; loops run once."""
        best: dict[int, tuple[int, int, int]] = {}  # instruction -> worth from it on, -length, the next one
        visited = set()
        stack = [0]
        while stack:
            at = stack[-1]
            if at not in visited:
                visited.add(at)
                stack += [after for after in self.next(at) if after not in visited]
                continue
            stack.pop()
            # What is not in `best` yet lies on the way here: that is a loop.
            ways = [(best[after][0], best[after][1], after) for after in self.next(at) if after in best]
            if self.instructions[at].operation == "EXIT":
                ways.append((0, 0, END))
            if at not in best and ways:
                more, length, after = max(ways)
                best[at] = (more + worth(at), length - 1, after)
        way, at = [], 0
        while at != END:
            way.append(at)
            at = best[at][2]
        return way


def disassemble(cubin: Path) -> dict[str, Function]:
    """The functions of a cubin by their mangled names.

    Raises:
        UserError: nvdisasm is missing, or refuses the file.
    """
    done = subprocess.run([find_nvdisasm(), "-json", str(cubin)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"nvdisasm cannot read {cubin.name}: {done.stderr.strip()}")
    _, functions = json.loads(done.stdout)
    return {
        function["function-name"]: Function(
            function["function-name"],
            tuple(
                Instruction(code["opcode"], code.get("operands", ""), code.get("predicate", ""))
                for code in function["sass-instructions"]
            ),
        )
        for function in functions
    }


def find_nvdisasm() -> str:
    """The program nvdisasm: that of the Python package, or else what PATH has.

    Raises:
        UserError: there is none.
    """
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    installed = next((str(file.locate()) for file in files if file.name == "nvdisasm"), None)
    program = installed or shutil.which("nvdisasm")
    if program is None:
        raise UserError(f"nvdisasm is missing: pip install {PACKAGE}")
    return program
