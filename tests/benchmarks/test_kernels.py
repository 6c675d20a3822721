"""The table of linear layers, on tiny shapes."""

import argparse

import kernels
import numpy as np
import pytest

from skim_export.measure import random_layers
from skim_export.measure.sessions import LayerSession, cold_layers
from skim_export.packed import CLASSES, PackedLinear
from skim_runtime.errors import UserError
from skim_runtime.library import library_path

from .command import measured, refusal

QUICK = ["--rounds", 2, "--seconds", 0.001, "--cold-mb", 0.05]


def arguments(*values):
    parser = argparse.ArgumentParser()
    kernels.add_arguments(parser)
    return parser.parse_args([str(value) for value in values])


def test_the_table(tmp_path):
    options = ["--shapes", "128x64", "100x320", "--tokens", 1, 3, 33, "--threads", 1, 2, *QUICK]
    report, printed = measured(tmp_path / "rows.json", "kernels", *options)
    rows = report["rows"]
    ours = 2 * len(kernels.WIDTHS)
    # 100 rows are no multiple of 128, so that onnxruntime would not take its table path.
    assert len(rows) == 2 * 3 * (ours + 4) + 2 * 3 * (ours + 3)
    for row in rows:
        assert row["milliseconds"] >= row["fastest"] > 0
        assert row["error"] < (0.02 if row["contender"].startswith("MatMulNBits") and row["level"] else 2e-3)
        assert row["gigabytes_per_second"] == pytest.approx(row["nbytes"] / row["milliseconds"] / 1e6)
        bandwidth = report["bandwidth"][str(row["threads"])]["bytes_per_second"]
        assert row["bandwidth_share"] == pytest.approx(1e9 * row["gigabytes_per_second"] / bandwidth)
        same = [r for r in rows if all(r[key] == row[key] for key in ("shape", "threads", "tokens"))]
        for contender, ratio in (("MatMulNBits 4 bits", "to_nbits4"), ("MatMulNBits 2 bits, LUT", "to_lut2")):
            other = [r for r in same if (r["contender"], r["level"]) == (contender, 4)]
            if other:
                assert row[ratio] == pytest.approx(other[0]["milliseconds"] / row["milliseconds"])
            else:
                assert row[ratio] is None
        if row["tokens"] < kernels.MANY_TOKENS:
            assert row["copies"] * row["nbytes"] >= 50_000 > (row["copies"] - 1) * row["nbytes"]
        else:
            assert row["copies"] == 1
    assert len({(row["contender"], row["level"]) for row in rows}) == ours + 4
    assert report["nothing_microseconds"].keys() == report["bandwidth"].keys() == {"1", "2"}
    assert report["cold_bytes"] == 50_000
    for text in (
        "2, 3 and 4 bits",
        "8 bits affine",
        "MatMul float32",
        "of bandwidth",
        "GB/s read by",
        "128x64, 33 tok",
    ):
        assert text in printed


def test_a_choice_of_widths(tmp_path, capsys):
    kernels.run(arguments("--shapes", "64x64", "--bits", 3, "mixed-3", "--levels", 0, "--tokens", 1, *QUICK))
    lines = capsys.readouterr().out.splitlines()
    ours = [line.split() for line in lines if " bits " in line and "MatMulNBits" not in line]
    assert {line[-8] for line in ours} == {"0.00"}
    assert len(ours) == 2 * 2
    assert not [line for line in lines if "LUT" in line and "MatMulNBits" in line]


def test_weights_are_those_of_the_format():
    random = np.random.default_rng(0)
    for shares in kernels.WIDTHS.values():
        layer = random_layers.packed_layer(random, 300, 96, shares)
        counts = layer.attributes["rows_per_class"]
        packed = PackedLinear(300, 96, (*counts, *[0] * (CLASSES - len(counts))), **layer.tensors)
        packed.validate()
        rows, weight = layer.sample()
        np.testing.assert_array_equal(weight, packed.dequantize()[rows])
        assert len(rows) == sum(min(count, random_layers.CHECKED_ROWS) for count in packed.rows_per_class)
        assert layer.nbytes == packed.nbytes
    bits = random_layers.packed_layer(random, 1000, 96, kernels.WIDTHS["mixed-3"]).attributes["rows_per_class"]
    assert np.dot(bits[:8], range(1, 9)) == 3000


def test_a_wrong_result_is_no_row(monkeypatch):
    sample = random_layers._first_rows

    def wrong(packed, count):
        part, rows = sample(packed, count)
        return part, rows[::-1]

    monkeypatch.setattr(random_layers, "_first_rows", wrong)
    contender = kernels._ours("3", 4)
    with pytest.raises(RuntimeError, match="3 bits, level 4: off by"):
        LayerSession(contender, cold_layers(contender.layer, 64, 64, 1), (64, 64), 1, library_path())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shapes", "64"], "--shapes 64: must be rows and columns, such as 4096x4096"),
        (["--shapes", "64x96"], "--shapes 64x96: columns must be a multiple of 64"),
        (["--tokens", 0], "--tokens 0: must be at least 1"),
        (["--threads", 0], "--threads 0: must be at least 1"),
        (["--rounds", 0], "--rounds 0: must be at least 1"),
        (["--seconds", "nan"], "--seconds nan: must be at least 0"),
        (["--cold-mb", 0], "--cold-mb 0.0: must be positive"),
        (["--cold-mb", 1, "--json", "/missing/rows.json"], "--json /missing/rows.json: cannot be written"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(UserError, match=message):
        kernels.run(arguments(*options))


def test_a_refusal_is_one_line():
    assert refusal("kernels", "--tokens", 0) == "benchmarks kernels: error: --tokens 0: must be at least 1"
    assert "of memory" in refusal("kernels", "--cold-mb", 1e9)
