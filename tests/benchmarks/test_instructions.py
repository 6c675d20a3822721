"""Instructions counted by valgrind."""

import argparse
import os
import platform

import instructions
import pytest

from skim_runtime.errors import UserError

from ..tools import require
from .command import measured, refusal


def arguments(*values):
    parser = argparse.ArgumentParser()
    instructions.add_arguments(parser)
    return parser.parse_args([str(value) for value in values])


@pytest.mark.slow
def test_the_table(tmp_path):
    require("valgrind", "cmake")
    kernel = "avx2" if platform.machine() in ("x86_64", "AMD64") else "reference"
    options = ["--shape", "16x256", "--tokens", 1, 2, "--classes", 2, 15, "--kernel", kernel]
    report, printed = measured(tmp_path / "a.json", "instructions", *options)
    counts = {(row["row_class"], row["arithmetic"], row["tokens"]): row["instructions"] for row in report["rows"]}
    assert counts.keys() == {(c, a, m) for c in (2, 15) for a in ("exact", "integer") for m in (1, 2)}
    assert all(0.05 < count < 300 for count in counts.values())
    for c in (2, 15):
        assert counts[c, "exact", 2] > counts[c, "exact", 1]
    for text in ("3 bits, table", "8 bits, affine", "exact, 1 token", "integer, 2 tokens", f"kernel {kernel}"):
        assert text in printed
    if kernel == "avx2":
        again, _ = measured(tmp_path / "b.json", "instructions", *options, "--repetitions", 3)
        for row in again["rows"]:
            assert row["instructions"] == pytest.approx(
                counts[row["row_class"], row["arithmetic"], row["tokens"]], rel=1e-3
            )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "16x100"], "--shape 16x100: columns must be a multiple of 32"),
        (["--tokens", 0], "--tokens 0: must be at least 1"),
        (["--repetitions", 0], "--repetitions 0: must be at least 1"),
        (["--classes", 22], r"--classes 22: must be 0\.\.21"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(UserError, match=message):
        instructions.run(arguments(*options))


def test_without_valgrind(tmp_path):
    environment = os.environ | {"PATH": str(tmp_path)}
    line = refusal("instructions", environment=environment)
    assert line == "benchmarks instructions: error: valgrind is missing: apt-get install valgrind"
