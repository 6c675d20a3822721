"""What nvcc makes of the CUDA kernels: no GPU is needed to see what they take of one."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_build import CUDA, Nvcc, is_for, kernel_sources
from gpus import ARCHITECTURES
from ptxas_report import read_report
from sass import disassemble

from ...tools import require


@dataclass(frozen=True)
class Expected:
    """What a kernel may take, and how many of its blocks a multiprocessor holds then.

    Attributes:
        threads: of a block.
        shared_bytes: of a block's dynamic shared memory: for rows of up to 4 bits and as many tokens as there may be;
            of decode_8 for one token of 4096 columns, which stay there, and of decode_16 if they do not.
        blocks: of one multiprocessor with 64, 100, 164 and 228 KiB of shared memory; 0: not compiled for it, or never
            launched there.
        multiplies: the tensor core instruction that it must have.
    """

    threads: int
    shared_bytes: int
    blocks: tuple[int, int, int, int]
    multiplies: str | None = None


# By source file, for all kernels in it.
KERNELS = {
    "decode_8": Expected(256, 44 << 10, (1, 2, 2, 2), "HMMA"),
    "decode_16": Expected(256, 120 << 10, (0, 0, 1, 1), "HMMA"),
    "float32": Expected(256, 64 << 10, (1, 1, 1, 1)),
    "prefill": Expected(128, 34 << 10, (1, 2, 2, 2), "HMMA"),
    "prefill_hopper": Expected(384, 101 << 10, (0, 0, 0, 1), "HGMMA"),
    "gather": Expected(128, 0, (8, 8, 8, 8)),
    "read_memory": Expected(256, 0, (4, 4, 4, 4)),
}
BFLOAT16 = "_bfloat16"  # is compiled from the same templates, and takes no more
KERNELS |= {name + BFLOAT16: KERNELS[name] for name in ("decode_8", "decode_16", "prefill", "prefill_hopper")}
SHARED = (64 << 10, 100 << 10, 164 << 10, 228 << 10)
HOPPER = ("prefill_hopper", "prefill_hopper_bfloat16")
LONGEST_FIRST = (
    *("decode_16", "decode_16_bfloat16", "prefill", "prefill_bfloat16", *HOPPER),
    *("decode_8", "decode_8_bfloat16", "float32", "gather", "read_memory"),
)
FAST = ("decode_8", "gather")  # are always tested, for one architecture

of_every_architecture = pytest.mark.parametrize(
    "compiled",
    [
        pytest.param(("sm_80", FAST), id="sm_80, some"),
        *(pytest.param((name, LONGEST_FIRST), marks=pytest.mark.slow, id=name) for name in ARCHITECTURES),
    ],
    indirect=True,
)

of_hopper = pytest.mark.parametrize(
    "compiled", [pytest.param(("sm_90", HOPPER), marks=pytest.mark.slow, id="sm_90")], indirect=True
)


@dataclass(frozen=True)
class Compiled:
    architecture: str
    cubins: dict[str, Path]

    def resources(self, name):
        """Resources of the kernels in a source file."""
        return list(read_report(self.cubins[name].with_suffix(".txt").read_text()))

    def code(self, name):
        """The instructions of each kernel in a source file, without the functions that they call."""
        kernels = {found.kernel for found in self.resources(name)}
        return [f.instructions for f in disassemble(self.cubins[name]).values() if f.name in kernels]


@pytest.fixture(scope="module")
def compiled(request):
    """Kernels for one architecture, compiled two files at a time."""
    require("nvcc")
    nvcc, (architecture, names) = Nvcc(), request.param
    with ThreadPoolExecutor(2) as pool:
        names = [name for name in names if is_for(CUDA / f"{name}.cu", architecture)]
        cubins = pool.map(lambda name: nvcc.cubin(CUDA / f"{name}.cu", architecture), names)
        return Compiled(architecture, dict(zip(names, cubins, strict=True)))


def test_every_source_file_is_known():
    assert {source.stem for source in kernel_sources()} == KERNELS.keys() == set(LONGEST_FIRST)


@of_every_architecture
def test_everything_is_in_registers(compiled):
    for name in compiled.cubins:
        resources = compiled.resources(name)
        assert resources
        assert not [found for found in resources if found.spill_bytes or found.stack_bytes]


@of_every_architecture
def test_occupancy(compiled):
    architecture = ARCHITECTURES[compiled.architecture]
    place = SHARED.index(architecture.shared_bytes)
    for name in compiled.cubins:
        expected = KERNELS[name]
        for found in compiled.resources(name):
            shared = found.shared_bytes + expected.shared_bytes
            blocks = architecture.resident_blocks(expected.threads, found.registers, shared)
            assert blocks >= expected.blocks[place], name


@of_every_architecture
def test_instructions(compiled):
    """Weights and activations are copied 16 bytes a thread without registers; weights go through tensor cores."""
    require("nvdisasm")
    turing = compiled.architecture == "sm_75"
    for name in compiled.cubins:
        of_bfloat16, expected = name.endswith(BFLOAT16), KERNELS[name].multiplies
        for code in compiled.code(name):
            multiplies = [i for i in code if i.operation in ("HMMA", "HGMMA", "IMMA")]
            if name.startswith("decode") and {i.operation for i in multiplies} == {"IMMA"}:
                assert not turing
                continue
            wanted = {expected} if expected and not (turing and of_bfloat16) else set()  # Turing has no bfloat16
            if turing and name.startswith("decode") and not multiplies:
                continue  # nor integers
            assert {i.operation for i in multiplies} == wanted
            assert all(("BF16" in i.modifiers) == of_bfloat16 for i in multiplies)
            if expected == "HMMA":
                assert turing or any(i.operation == "LDGSTS" for i in code)  # Turing has no such thing
    for name in (name for name in compiled.cubins if name.startswith("decode")):
        kinds = [{i.operation for i in code} & {"HMMA", "IMMA"} for code in compiled.code(name)]
        assert turing or kinds.count({"IMMA"}) == 1
    for code in compiled.code("decode_8"):
        if turing:
            continue
        assert sum(i.operation == "LDGSTS" and "128" in i.modifiers for i in code) > 16
    for code in compiled.code("float32") if "float32" in compiled.cubins else ():
        assert any(i.operation == "FFMA" for i in code)


@of_hopper
def test_warpgroups_multiply_while_they_decode(compiled):
    """The compiler serializes multiplications that it can't follow, and says so."""
    for name, cubin in compiled.cubins.items():
        assert "wgmma" not in cubin.with_suffix(".txt").read_text()
        # What warpgroups give and take sums up to this.
        assert {found.registers for found in compiled.resources(name)} == {65536 // 384 // 8 * 8}
        for code in compiled.code(name):
            waits = [i.operands.split(",")[-1].strip() for i in code if i.opcode.startswith("WARPGROUP.DEPBAR")]
            assert waits.count("0x1") > waits.count("0x0") > 0  # only at the end for all of them
            assert sum(i.opcode.startswith("USETMAXREG") for i in code) == 2


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
