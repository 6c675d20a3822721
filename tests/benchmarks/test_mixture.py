"""The table of mixtures of experts, on a tiny one, and the training of a small one, for a few seconds."""

import pytest

from skim_export.checkpoint import Model

from .command import benchmark, measured, refusal

QUICK = ["--rounds", 2, "--seconds", 0.001]
TINY = ["--experts", 6, "--per-token", 2, "--hidden", 64, "--inner", 32]


def test_the_table(tmp_path):
    report, printed = measured(tmp_path / "rows.json", "mixture", *TINY, "--tokens", 1, 9, "--threads", 1, 2, *QUICK)
    rows = report["rows"]
    assert len(rows) == 2 * 2 * 4
    for row in rows:
        (qmoe,) = (
            other
            for other in rows
            if other["contender"] == "QMoE 4 bits" and all(other[key] == row[key] for key in ("tokens", "threads"))
        )
        assert row["to_qmoe"] == pytest.approx(qmoe["milliseconds"] / row["milliseconds"])
        assert 0 < row["error"] < (0.02 if row is qmoe else 2e-3)
        assert row["read"] <= row["nbytes"]
        if row["tokens"] == 1:
            assert row["read"] == pytest.approx(row["nbytes"] * 2 / 6)
    assert "MB read a token" in printed


def test_what_is_wrong_is_said():
    assert "--per-token 7: must be from 1 to --experts 6" in refusal("mixture", *TINY, "--per-token", 7)
    assert "--inner 33: must be a multiple of 32" in refusal("mixture", *TINY, "--inner", 33)


@pytest.mark.slow
def test_a_mixture_is_trained(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    done = benchmark("train-mixture", "--text", text, "--minutes", 0.2, "-o", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert "loss" in done.stdout
    model = Model.open(tmp_path / "model")
    assert sum(linear.of_experts for linear in model.architecture.linears) == 4 * 3
    message = refusal("train-mixture", "--text", text, "-o", tmp_path / "model")
    assert message.endswith("model: exists")
