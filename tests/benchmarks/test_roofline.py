"""Predictions from machine code: its paths and loops, ptxas's reports, and the model over them."""

import argparse

import pytest
import roofline
from decode_latency import flight
from gpus import GPUS
from ptxas_report import Resources, demangled, read_report
from sass import Function, Instruction, find_nvdisasm

from skim_runtime.errors import UserError

from ..tools import require
from .command import measured

REPORT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN4skim4cuda12GatherKernelIfEEvNS0_11DeviceLayerEPKlPT_' for 'sm_90'
ptxas info    : Function properties for _ZN4skim4cuda12GatherKernelIfEEvNS0_11DeviceLayerEPKlPT_
    16 bytes stack frame, 20 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 16 bytes cumulative stack size, 24 bytes smem
ptxas info    : Compiling entry function 'plain' for 'sm_90'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 128 registers, used 0 barriers
"""


def code(*lines):
    """A function of lines such as `@P0 BRA 0x20`."""
    instructions = []
    for line in lines:
        words = line.split()
        predicate = words.pop(0) if words[0].startswith("@") else ""
        instructions.append(Instruction(words[0], words[1] if len(words) > 1 else "", predicate))
    return Function("f", tuple(instructions))


def test_reports():
    gather, plain = read_report(REPORT)
    assert gather == Resources("_ZN4skim4cuda12GatherKernelIfEEvNS0_11DeviceLayerEPKlPT_", 32, 16, 24, 24)
    assert plain == Resources("plain", 128, 0, 0, 0)
    assert demangled(gather.kernel) == "GatherKernel<float>"
    with pytest.raises(ValueError, match="ptxas's report has no"):
        list(read_report("Compiling entry function 'a'"))


def test_the_shortest_path_runs_loops_once():
    function = code("MOV", "HMMA", "IADD3", "@P0 BRA 0x10", "@P1 BRA 0x70", "IADD3", "IADD3", "EXIT")
    assert list(function.loops()) == [range(1, 4)]
    assert function.path(lambda at: at == 1) == [0, 1, 2, 3, 4, 7]


def test_what_was_moved_behind_the_end_is_no_loop():
    assert list(code("MOV", "@P0 BRA 0x30", "EXIT", "IADD3", "BRA 0x10").loops()) == []


def test_the_path_goes_where_it_is_worth_most():
    function = code("@P0 EXIT", "@P1 BRA 0x50", "LDG.E.128", "NOP", "BRA 0x60", "NOP", "EXIT")
    assert function.path(lambda at: 0) == [0]
    assert function.path(lambda at: at == 2) == [0, 1, 2, 3, 4, 6]
    assert function.path(lambda at: {1: 1, 2: -1}.get(at, 0)) == [0, 1, 5, 6]


def test_the_path_leaves_a_loop_by_a_jump_that_looks_like_a_call():
    function = code("HMMA", "@P0 CALL.REL.NOINC 0x40", "CALL.REL.NOINC $helper", "BRA 0x0", "STG.E", "EXIT")
    assert function.path(lambda at: at == 4) == [0, 1, 4, 5]


def test_the_path_does_not_go_on_behind_a_trap():
    """Whoever went on there would come into the loop from its end."""
    function = code("@P0 BRA 0x40", "HMMA", "NOP", "@P1 BRA 0x10", "@P2 BRA 0x60", "EXIT", "BPT.TRAP 0x1", "BRA 0x20")
    assert function.path(lambda at: at == 1) == [0, 1, 2, 3, 4, 5]


def probe(number, products, arithmetic, words=()):
    """The code of a class's probe: tiles, units in them with all copies that there may be, and the words of a unit."""
    copies = ["LDGSTS.E.BYPASS.128", "LDGSTS.E.BYPASS.128", "@P0 BRA 0x{:x}"] * 8
    copies = [line.format(16 * 27) if "BRA" in line else line for line in copies]  # to the copy of codebooks
    head = ["S2R", "NOP", "NOP", *copies]  # a tile begins at 1, a unit at 2
    inner = [*["HMMA.16816.F32"] * products, *["PRMT"] * arithmetic, *words]
    tail = ["@P1 BRA 0x20", "BAR.SYNC", "@P2 BRA 0x{:x}", "STG.E", "@P3 BRA 0x10", "EXIT"]
    lines = [*head, "LDGSTS.E.BYPASS.128", *inner, *tail]
    lines = [line.format(16 * (len(lines) - 2)) if "{" in line else line for line in lines]
    return Function(f"_ZN4skim4cuda5ProbeILNS0_9LevelKindE0ELi{number}ELb0EEEvv", code(*lines).instructions)


def test_a_prediction():
    a100 = GPUS[0]
    assert a100.name == "A100 SXM 80 GB"
    # 16 rows of 4096 columns are a unit for each of 8 warps: 32 products. 8 copies of codes, one of codebooks.
    found = roofline.predict(probe(3, 32, 1000), a100, 4096)
    assert (found.kind, found.bits) == ("int8 table", 4)
    issued = 8 * (1 + 1 + 8 + 4 + 1 + 32 + 1000 + 1 + 1 + 1 + 1) + 1
    assert found.instructions["issue"] == pytest.approx(32 * issued / (16 * 4096))
    assert found.clocks["ALU"] == 8 * 1000 / 2
    assert found.clocks["tensor"] == 8 * 32 / 0.5
    assert found.clocks["memory"] == pytest.approx((8 * 9 * 16 * 32 + 4 * 32) / 128)
    assert found.clocks["bandwidth"] == pytest.approx(16 * (2048 + 18) / (2039e9 / 108 / 1.41e9))
    assert found.limit == "ALU"
    assert found.bandwidth_share == pytest.approx(found.clocks["bandwidth"] / found.clocks["ALU"])
    assert roofline.predict(probe(3, 32, 5), a100, 4096).bandwidth_share == 1
    # Twice the columns are two units a warp, of one tile.
    twice = roofline.predict(probe(3, 32, 500), a100, 8192)
    assert twice.clocks["issue"] == (8 * (2 * (1 + 8 + 4 + 1 + 32 + 500 + 1) + 4) + 1) / 4


def test_windows_have_half_of_their_levels_in_the_codebook():
    found, plain = (roofline.predict(probe(number, 32, 1000), GPUS[0], 4096) for number in (20, 2))
    assert (found.kind, found.bits, found.memory) == ("int8 table, m = 1", 3, 1)
    assert found.clocks == plain.clocks
    two = roofline.predict(probe(19, 32, 1000), GPUS[0], 4096)
    assert (two.bits, two.memory) == (2, 2)
    assert two.clocks["bandwidth"] == pytest.approx(16 * (1024 + 10) / (2039e9 / 108 / 1.41e9))


def test_wide_codebooks_are_not_copied():
    found = roofline.predict(probe(7, 32, 0), GPUS[0], 4096)
    assert found.clocks["memory"] == pytest.approx((8 * 16 * 16 * 32 + 4 * 32) / 128, rel=0.1)


def test_a_loop_over_words_runs_as_often_as_there_are_products():
    wide = probe(7, 8, 100, words=["@P4 BRA 0x1c0"])  # 8 of 32 products at a time: four times 100 instructions
    found = roofline.predict(wide, GPUS[0], 4096)
    assert found.clocks["ALU"] == 8 * 4 * 100 / 2
    assert found.clocks["tensor"] == 8 * 4 * 8 / 0.5


def test_latency():
    h100 = GPUS[1]
    clocks = {"issue": 700.0, "ALU": 500.0, "bandwidth": 1800.0}
    found = flight(h100, 3, 4096, 8, clocks)
    assert found.needed == pytest.approx(900 * 3352e9 / 132 / 1.83e9)
    assert found.streamed == 2 * 8 * 3 * 3072  # two blocks of eight warps with three slots
    assert found.one_by_one == pytest.approx(200 + 900 + 1800 + 1000 + 1000)
    assert found.one_by_one_share == pytest.approx(3600 / 4900)
    assert (found.tile, found.share) == (1800, 1)
    slow = flight(h100, 3, 4096, 8, {**clocks, "issue": 1400.0})
    assert slow.tile == pytest.approx(2000)
    assert slow.share == pytest.approx(0.9)
    # Of activations that leave no room for a second unit, one is on its way.
    assert flight(h100, 3, 40960, 8, clocks).streamed == 2 * 8 * 3072


def test_every_instruction_of_the_pipes_is_in_one():
    operations = [operation for names in roofline.PIPES.values() for operation in names.split()]
    assert len(set(operations)) == len(operations)
    for gpu in GPUS:
        assert gpu.rates.keys() == (roofline.PIPES.keys() - {"memory"}) | {"issue", "uniform"}


@pytest.mark.slow
def test_the_command(tmp_path):
    require("nvcc", "nvdisasm")
    report, printed = measured(tmp_path / "a.json", "roofline", "--columns", 4096, "--markdown", tmp_path / "a.md")
    assert printed.strip() == (tmp_path / "a.md").read_text().strip()
    assert {row["gpu"] for row in report["rows"]} == {gpu.name for gpu in GPUS}
    assert len(report["rows"]) == (24 + 12 + 6 + 5) * len(GPUS)
    for row in report["rows"]:
        assert 0 < row["bandwidth_share"] <= 1
        assert 1 < row["instructions"]["issue"] < 20
        tensor = row["instructions"]["integer tensor" if "integers" in row["kind"] else "tensor"]
        assert tensor == pytest.approx(32 / 256)


@pytest.mark.parametrize(
    ("columns", "message"),
    [(0, "--columns 0: must be at least 1"), (4000, "--columns 4000: must be a multiple of 512")],
)
def test_refusals(columns, message):
    parser = argparse.ArgumentParser()
    roofline.add_arguments(parser)
    with pytest.raises(UserError, match=message):
        roofline.run(parser.parse_args(["--columns", str(columns)]))


def test_without_nvdisasm(monkeypatch, tmp_path):
    monkeypatch.setattr("sass.PACKAGE", "no-such-package")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="nvdisasm is missing: pip install"):
        find_nvdisasm()
