"""A model that was written is compared with transformers, and one that computes something else is not published."""

import json
from dataclasses import replace

import pytest

from skim_export import export
from skim_export.checkpoint import Model
from skim_export.cli.main import main
from skim_export.pipeline import check as checking
from skim_export.pipeline import export as pipeline
from skim_export.pipeline.check import check
from skim_export.pipeline.export import prepare
from skim_export.pipeline.memory import is_checked
from skim_export.pipeline.options import ExportOptions
from skim_export.work.resources import Resources
from skim_runtime import Session, UserError
from skim_runtime.progress import Progress

from ..random_packed import random_units
from ..tiny_models import tiny_llama, tiny_mistral

QUICK = ExportOptions(bits=3, effort="weights")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("check") / "model", attention_bias=True))


@pytest.mark.parametrize(
    ("options", "bound"),
    [({}, 5e-3), ({"accuracy_level": 0}, 1e-5), ({"ep": "cuda"}, 2e-2), ({"head_bits": "auto", "method": "rtn"}, 5e-3)],
)
@pytest.mark.parametrize("tiny", [tiny_llama, tiny_mistral])
@pytest.mark.filterwarnings("ignore:the model was exported for CUDA")
def test_what_is_right_passes(tmp_path, tiny, options, bound):
    model = str(tiny(tmp_path / "model"))
    effort = {} if "method" in options else {"effort": "weights"}
    report = export(model, tmp_path / "out" / "model.onnx", bits=3, **effort, **options)
    assert 0 < report.error < bound


def wrong(name):
    """Weights of which those of one unit are another's."""

    def emit(model, weights, *arguments):
        def read(unit):
            packed = weights(unit)
            return packed if unit != name else replace(packed, codes=packed.codes[::-1].copy())

        return emitted(model, read, *arguments)

    emitted = pipeline.emit
    return emit


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj", "model.layers.0.attn.qkv_proj", "model.embed_tokens"])
def test_what_is_wrong_is_not_published(llama, tmp_path, monkeypatch, capsys, name):
    output = tmp_path / "out" / "model.onnx"
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "emit", wrong(name))
        assert main(["--model", llama, "--effort", "weights", "-o", str(output)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "does not compute what transformers computes" in line
    assert "keeps what was done" in line
    assert not output.parent.exists()
    assert main(["--model", llama, "--effort", "weights", "-o", str(output)]) == 0
    assert "to a relative error of" in " ".join(capsys.readouterr().out.split())
    Session(output.parent)


def test_it_is_left_out(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "emit", wrong("model.embed_tokens"))
    assert export(llama, tmp_path / "out" / "model.onnx", QUICK, check=False).error is None


def test_large_models_are_checked_if_asked(llama, tmp_path, monkeypatch):
    def job(**options):
        return prepare(llama, tmp_path / "out" / "model.onnx", replace(QUICK, **options))

    assert is_checked(job())
    assert not is_checked(job(check=False))
    monkeypatch.setattr("skim_export.pipeline.memory.checking_bytes", lambda model: 1 << 50)
    assert is_checked(job())
    assert not is_checked(job(max_memory=4 << 30))
    with pytest.raises(UserError, match=r"--max-memory .*: too small"):
        job(max_memory=4 << 30, check=True)
    monkeypatch.setattr("skim_export.pipeline.memory.CHECKED_UNASKED", 1000)
    assert not is_checked(job())
    assert is_checked(job(check=True))


def test_the_result_does_not_depend_on_it(llama, tmp_path):
    for name, asked in (("a", True), ("b", False)):
        export(llama, tmp_path / name / "model.onnx", QUICK, check=asked)
    reports = [json.loads((tmp_path / name / "export.json").read_text()) for name in "ab"]
    assert reports[0] == reports[1]


def test_a_short_context(tmp_path):
    model = Model.open(tiny_llama(tmp_path / "model", max_position_embeddings=checking.LENGTH - 1))
    export(str(model.checkpoint.path), tmp_path / "out" / "model.onnx", QUICK)
    with pytest.raises(UserError, match="does not compute what transformers computes"):
        check(model, random_units(model).__getitem__, tmp_path / "out", resources=Resources(1), progress=Progress())
