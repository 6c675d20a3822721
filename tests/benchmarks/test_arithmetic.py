"""The benchmark of integer arithmetic, on a tiny model."""

import pytest
from arithmetic import with_accuracy_level

from skim_export import export
from skim_runtime import Session
from skim_runtime.model_directory import ModelDirectory

from ..tiny_models import tiny_llama
from .command import measured

TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds. " * 40


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("arithmetic")
    export(str(tiny_llama(path / "hf")), path / "out" / "model.onnx", bits=4, method="rtn")
    return path / "out"


def test_the_table(exported, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    options = ["--exported", exported, "--text", text, "--tokens", 200, "--context", 64]
    report, printed = measured(tmp_path / "found.json", "arithmetic", *options)
    assert ["exact" in report["kernels"][0], "integer" in report["kernels"][1]] == [True, True]
    (row,) = report["rows"]
    assert report["texts"]["text.txt"]["bytes"] == len(TEXT)
    assert row["evaluation"]["perplexity_error"] > 0
    assert 0 < abs(row["cost"]) < 0.01
    assert 0 < row["evaluation"]["kl_mean"] < 1e-3
    assert "text.txt" in printed


def test_copies_have_the_level_that_is_asked_for(exported, tmp_path):
    directory = ModelDirectory.open(exported)
    for level, word in ((0, "exact"), (4, "integer")):
        assert word in Session(with_accuracy_level(directory, tmp_path / str(level), level)).kernel
