"""Predictions from machine code: its paths and loops, ptxas's reports, and the model over them."""

import argparse

import pytest
import roofline
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
    assert function.path(lambda i: i.operation == "HMMA") == [0, 1, 2, 3, 4, 7]


def test_the_path_goes_where_it_is_needed():
    function = code("@P0 EXIT", "@P1 BRA 0x50", "LDG.E.128", "NOP", "BRA 0x60", "NOP", "EXIT")
    assert function.path(lambda i: False) == [0]
    assert function.path(lambda i: i.operation == "LDG") == [0, 1, 2, 3, 4, 6]


def test_the_path_leaves_a_loop_by_a_jump_that_looks_like_a_call():
    function = code("HMMA", "@P0 CALL.REL.NOINC 0x40", "CALL.REL.NOINC $helper", "BRA 0x0", "STG.E", "EXIT")
    assert function.path(lambda i: i.operation == "STG") == [0, 1, 4, 5]


def probe(bits, loads, arithmetic):
    """A probe's code: a loop of one load of codes and one tensor core instruction, as much arithmetic as given."""
    body = ["LDG.E.NA.128.CONSTANT"] * loads + ["HMMA.16816.F32"] + ["PRMT"] * arithmetic
    function = code("S2R", *body, "@P0 BRA 0x10", "@P1 EXIT", "STG.E", "EXIT")
    return Function(f"_ZN4skim4cuda5ProbeILNS0_9LevelKindE0ELi{bits}EEEvv", function.instructions)


def test_a_prediction():
    a100 = GPUS[0]
    assert a100.name == "A100 SXM 80 GB"
    # Two loads of 16 bytes by 32 threads bring 2048 codes of 4 bits; 16 rows of 4096 columns are 4 turns of 8 warps.
    found = roofline.predict(probe(4, 2, 500), a100, 4096)
    assert (found.kind, found.bits) == ("int8 table", 4)
    issued = 8 * (4 * (2 + 1 + 500 + 1) + 2) + 2
    assert found.instructions["issue"] == pytest.approx(32 * issued / (16 * 4096), rel=1e-3)
    assert found.clocks["ALU"] == 8 * 4 * 500 / 2
    assert found.clocks["tensor"] == 8 * 4 / 0.5
    assert found.clocks["memory"] == pytest.approx((8 * 4 * 2 * 16 * 32 + 4 * 32) / 128)
    assert found.clocks["bandwidth"] == pytest.approx(16 * (2048 + 18) / (2039e9 / 108 / 1.41e9))
    assert found.limit == "ALU"
    assert found.bandwidth_share == pytest.approx(found.clocks["bandwidth"] / found.clocks["ALU"])
    assert roofline.predict(probe(4, 2, 5), a100, 4096).bandwidth_share == 1


def test_a_loop_over_words_runs_as_often_as_there_are_products():
    loads, products, arithmetic = ["LDG.E.NA.64.CONSTANT"] * 16, ["HMMA.16816.F32"] * 8, ["PRMT"] * 100
    function = code("S2R", *loads, *products, *arithmetic, "@P0 BRA 0x110", "@P1 BRA 0x10", "STG.E", "EXIT")
    wide = Function("_ZN4skim4cuda5ProbeILNS0_9LevelKindE1ELi8EEEvv", function.instructions)
    found = roofline.predict(wide, GPUS[0], 4096)
    # 16 loads of 8 bytes by 32 threads bring 4096 codes of 8 bits: 16 products, 8 at a time, and 2 turns of 8 warps.
    assert found.clocks["ALU"] == 8 * 2 * 2 * 100 / 2
    assert found.clocks["tensor"] == 8 * 2 * 2 * 8 / 0.5


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
    assert len(report["rows"]) == 24 * len(GPUS)
    for row in report["rows"]:
        assert 0 < row["bandwidth_share"] <= 1
        assert 1 < row["instructions"]["issue"] < 20
        tensor = row["instructions"]["tensor"]
        sums = 2 if row["kind"] == "affine" else 1  # with ones: of the tokens
        assert tensor == pytest.approx(sums * 32 / 256, rel=0.1)


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
