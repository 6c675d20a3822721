"""What nvcc makes of the CUDA kernels: no GPU is needed to see what they take of one."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_build import Nvcc, kernel_sources
from gpus import ARCHITECTURES
from ptxas_report import demangled, read_report
from sass import disassemble, find_nvdisasm

from skim_runtime.errors import UserError


@dataclass(frozen=True)
class Expected:
    """What a kernel may take, and how many of its blocks a multiprocessor holds then.

    Attributes:
        threads: of a block.
        registers: of a thread, at most.
        shared_bytes: of a block's dynamic shared memory: for rows of up to 4 bits and as many tokens as there may be.
        blocks: of one multiprocessor with 64, 100, 164 and 228 KiB of shared memory.
    """

    threads: int
    registers: int
    shared_bytes: int
    blocks: tuple[int, int, int, int]


KERNELS = {
    "DecodeKernel<unsigned short, 1, 1>": Expected(256, 128, 32 << 10, (2, 2, 2, 2)),
    "DecodeKernel<unsigned short, 2, 2>": Expected(256, 255, 64 << 10, (1, 1, 1, 1)),
    "DecodeKernel<float, 1, 1>": Expected(256, 128, 64 << 10, (1, 1, 2, 2)),
    "PrefillKernel": Expected(128, 255, 64 << 10, (1, 1, 2, 2)),
    "GatherKernel<unsigned short>": Expected(128, 64, 0, (8, 8, 8, 8)),
    "GatherKernel<float>": Expected(128, 64, 0, (8, 8, 8, 8)),
}
SHARED = (64 << 10, 100 << 10, 164 << 10, 228 << 10)
FAST = "sm_80"  # the architecture that is always tested

of_every_architecture = pytest.mark.parametrize(
    "compiled",
    [FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES if name != FAST)],
    indirect=True,
)


def missing(what):
    """Skip, or fail in CI."""
    (pytest.fail if "CI" in os.environ else pytest.skip)(what)


@dataclass(frozen=True)
class Compiled:
    architecture: str
    cubins: list[Path]

    def resources(self):
        """Resources by the kernels' names."""
        reports = [cubin.with_suffix(".txt").read_text() for cubin in self.cubins]
        return {demangled(found.kernel): found for report in reports for found in read_report(report)}

    def code(self, kernel):
        """The instructions of a kernel."""
        for cubin in self.cubins:
            for name, function in disassemble(cubin).items():
                if demangled(name) == kernel:
                    return function.instructions
        raise AssertionError(f"there is no {kernel}")


@pytest.fixture(scope="module")
def compiled(request):
    """All kernels for one architecture, compiled two files at a time, those that take longest first."""
    if shutil.which("nvcc") is None:
        missing("nvcc is missing")
    nvcc, started = Nvcc(), time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        cubins = list(pool.map(lambda source: nvcc.cubin(source, request.param), reversed(kernel_sources())))
    terminal = request.config.pluginmanager.getplugin("terminalreporter")
    terminal.write_line(f"\nkernels for {request.param}: {time.monotonic() - started:.0f} s")
    return Compiled(request.param, cubins)


@of_every_architecture
def test_everything_is_in_registers(compiled):
    resources = compiled.resources()
    assert resources.keys() == KERNELS.keys()
    spilled = {name: r for name, r in resources.items() if r.spill_bytes or r.stack_bytes}
    assert not spilled


@of_every_architecture
def test_occupancy(compiled):
    architecture = ARCHITECTURES[compiled.architecture]
    place = SHARED.index(architecture.shared_bytes)
    for name, found in compiled.resources().items():
        expected = KERNELS[name]
        assert found.registers <= expected.registers, name
        shared = found.shared_bytes + expected.shared_bytes
        blocks = architecture.resident_blocks(expected.threads, found.registers, shared)
        assert blocks >= expected.blocks[place], name


@of_every_architecture
def test_instructions(compiled):
    """Weights come 16 bytes a thread and go through tensor cores; prefill copies activations meanwhile."""
    try:
        find_nvdisasm()
    except UserError as error:
        missing(str(error))
    decode = compiled.code("DecodeKernel<unsigned short, 1, 1>")
    prefill = compiled.code("PrefillKernel")
    assert any(i.operation == "LDG" and {"128", "NA"} <= set(i.modifiers) for i in decode)
    for code in (decode, prefill, compiled.code("DecodeKernel<unsigned short, 2, 2>")):
        assert any(i.operation == "HMMA" for i in code)
        if compiled.architecture != "sm_75":
            assert any(i.operation == "LDGSTS" for i in code)
    assert not any(i.operation == "HMMA" for i in compiled.code("DecodeKernel<float, 1, 1>"))


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "blocks"),
    [
        (256, 128, 0, 2),
        (256, 129, 0, 1),  # registers come in units of 8
        (128, 255, 0, 2),
        (1024, 32, 0, 2),
        (32, 16, 0, 32),
        (128, 32, 80 << 10, 2),
        (128, 32, 82 << 10, 1),  # and a KiB for the system
        (128, 32, 164 << 10, 0),
    ],
)
def test_resident_blocks(threads, registers, shared, blocks):
    assert ARCHITECTURES["sm_80"].resident_blocks(threads, registers, shared) == blocks
