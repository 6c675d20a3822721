"""The two quality tables on a tiny model: figures against transformers, and rows that survive."""

import argparse
import json
import pickle
from dataclasses import replace

import exportable
import numpy as np
import published
import pytest
import quality
import quality_whole
import torch
from block_formats import quantize_blocks, rtn_groups
from measuring import read_tokens
from results import AS_DISTRIBUTED, Results
from transformers import AutoModelForCausalLM

from skim_export import export
from skim_export.checkpoint import Checkpoint
from skim_export.quantize import METHODS
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from ..tiny_models import TEXT, tiny_llama

TOKENS, CONTEXT = 90, 40


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Directory with a tiny model, a text to measure on and one for calibration."""
    path = tmp_path_factory.mktemp("quality")
    tiny_llama(path / "model", max_position_embeddings=64)
    (path / "text.txt").write_text(TEXT * 10)
    (path / "calib.txt").write_text(TEXT[::-1] * 100)
    return path


@pytest.fixture(autouse=True)
def _few_calibration_tokens(monkeypatch):
    monkeypatch.setattr("skim_export.pipeline.calibration_text.SEQUENCES", 2)
    monkeypatch.setattr("skim_export.pipeline.calibration_text.LENGTH", 32)


def through_pickle(value):
    """As it is on the other side of a process's pipe."""
    return pickle.loads(pickle.dumps(value))


@pytest.fixture
def calls(monkeypatch):
    """Rows are measured in this process, which is faster; the list tells which."""
    made = []

    def here(function, *args):
        made.append((function.__name__, *args[1:]))
        return through_pickle(function(Progress(), *through_pickle(args)))

    for module in (quality, quality_whole):
        monkeypatch.setattr(module, "in_child", here)
    return made


def arguments(module, files, *more):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    common = ["--model", files / "model", "--text", files / "text.txt", "--calib", files / "calib.txt"]
    sizes = ["--tokens", TOKENS, "--context", CONTEXT, "--threads", torch.get_num_threads()]
    return parser.parse_args([str(argument) for argument in (*common, *sizes, *more)])


def saved(path):
    return {(row["method"], row["bits"]): row for row in json.loads(path.read_text())["rows"]}


def distances_by_transformers(directory, ids, change):
    """Perplexity, KL and top-1 agreement of a changed model, window by window."""
    full, other = (AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32) for _ in range(2))
    change(other)
    loss, kl, same = [], [], []
    with torch.no_grad():
        for start in range(0, len(ids) - 1, CONTEXT):
            window = torch.from_numpy(ids[start : start + CONTEXT])[None]
            p, q = (torch.log_softmax(model(window).logits[0, :-1].double(), -1) for model in (full, other))
            loss += (-q[torch.arange(len(q)), window[0, 1:]]).tolist()
            kl += (p.exp() * (p - q)).sum(-1).tolist()
            same += (p.argmax(-1) == q.argmax(-1)).tolist()
    return np.exp(np.mean(loss)), np.mean(kl), np.mean(same)


def test_figures_are_those_of_transformers(files, calls, tmp_path, capsys):
    out = tmp_path / "rows.json"
    quality.run(arguments(quality, files, "--methods", "rtn-g64", "--bits", 3, "--json", out))
    rows = saved(out)

    def change(model):
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                module.weight.data = torch.from_numpy(quantize_blocks(module.weight.data.numpy(), rtn_groups(3)).weight)

    ids = read_tokens(Checkpoint(files / "model"), [files / "text.txt"], TOKENS, CONTEXT)["text.txt"]
    perplexity, kl, same = distances_by_transformers(files / "model", ids, change)
    report = json.loads(out.read_text())
    settings = report["settings"]
    assert settings["texts"]["text.txt"]["bytes"] == len(TEXT) * 10
    assert settings["texts"]["text.txt"]["tokens"] == TOKENS
    assert "below 16384" in settings["warnings"][0]
    assert report["machine"]["processor"]
    row = rows["rtn-g64", 3]
    found = row["texts"]["text.txt"]
    assert 0 < found["perplexity_error"] < found["perplexity"]
    assert found["perplexity"] == pytest.approx(perplexity, rel=1e-4)
    assert found["kl_mean"] == pytest.approx(kl, rel=1e-3)
    assert found["top1_agreement"] == pytest.approx(same)
    assert row["code_bits"] == 3
    columns = {64: 128 * 64 + 64 * 64 + 2 * 160 * 64, 160: 64 * 160}  # weights of a layer by K
    bits = 2 * sum(count * 3 + count // k * -(-k // 64) * 19 for k, count in columns.items())
    assert row["effective_bits"] == pytest.approx(bits / (2 * sum(columns.values())), rel=1e-4)
    assert row["megabytes"] == pytest.approx(bits / 8e6)
    full = rows[AS_DISTRIBUTED, None]["texts"]["text.txt"]
    assert full["perplexity"] == pytest.approx(distances_by_transformers(files / "model", ids, lambda m: None)[0])
    assert (full["kl_mean"], full["top1_agreement"]) == (0, 1)
    assert "rtn-g64" in capsys.readouterr().out
    assert [name for name, *_ in calls] == ["full_precision_row", "_measure"]  # and no calibration


def test_every_method_and_the_order_of_rows(files, calls, tmp_path, capsys):
    more = ["--bits", 2.5, 4, "--json", tmp_path / "rows.json", "--ratio-to", "squeezellm"]
    quality.run(arguments(quality, files, *more, "--plot", tmp_path / "plot.svg"))
    rows = saved(tmp_path / "rows.json")
    half = [(method, 2.5) for method in ("rtn", "squeezellm", "squeezellm-sparse", "gptq", "skim", "skim+")]
    whole = [(method, 4.0) for method in ("rtn", "rtn-g64", "squeezellm", "squeezellm-sparse", "gptq", "skim", "skim+")]
    assert list(rows) == [(AS_DISTRIBUTED, None), ("mxfp4", None), *half, *whole]
    for (_, bits), row in list(rows.items())[2:]:
        assert row["code_bits"] == pytest.approx(bits, abs=0.03)
        assert bits < row["effective_bits"]
    assert rows["mxfp4", None]["effective_bits"] == 4.25
    assert "<svg" in (tmp_path / "plot.svg").read_text()[:1000]
    printed = capsys.readouterr().out
    assert "gap/squeezellm" in printed
    assert [line.split()[0] for line in printed.splitlines() if "squeezellm " in line and " 1.000" in line]


def test_a_killed_table_is_continued(files, calls, tmp_path, monkeypatch):
    out = tmp_path / "rows.json"
    measured = quality._measure

    def killed(progress, job, method, *args):
        if method == "mxfp4":
            raise KeyboardInterrupt
        return measured(progress, job, method, *args)

    options = ["--bits", 2, "--json", out]
    monkeypatch.setattr(quality, "_measure", killed)
    with pytest.raises(KeyboardInterrupt):
        quality.run(arguments(quality, files, "--methods", "mxfp4", *options))
    assert list(saved(out)) == [(AS_DISTRIBUTED, None)]
    monkeypatch.setattr(quality, "_measure", measured)
    calls.clear()
    quality.run(arguments(quality, files, "--methods", "rtn", "squeezellm", *options))
    assert [name for name, *_ in calls] == ["calibrate_once", "_measure", "_measure"]
    before = saved(out)
    calls.clear()
    quality.run(arguments(quality, files, "--methods", "squeezellm", "mxfp4", "rtn", *options))
    assert [call[1:3] for call in calls] == [("mxfp4", None)]
    assert saved(out) == {**before, ("mxfp4", None): saved(out)["mxfp4", None]}
    calls.clear()
    quality.run(arguments(quality, files, "--methods", "squeezellm", "mxfp4", "rtn", *options))
    assert not calls


def test_calibration_can_be_kept(files, calls, tmp_path):
    options = ["--bits", 2, "--work", tmp_path / "work", "--methods"]
    quality.run(arguments(quality, files, *options, "squeezellm"))
    calls.clear()
    quality.run(arguments(quality, files, *options, "skim+"))
    assert [name for name, *_ in calls] == ["full_precision_row", "_measure"]
    calls.clear()
    quality.run(arguments(quality, files, *options, "skim+", "--tokens", 80))
    assert [name for name, *_ in calls] == ["full_precision_row", "calibrate_once", "_measure"]


def test_methods_with_other_parts():
    plain, tuned = exportable.parse_method("skim+")
    assert (plain, tuned) == (METHODS["skim+"], False)
    altered, tuned = exportable.parse_method("skim+:even,scaled,tune")
    assert altered == replace(METHODS["skim+"], allocation=False, column_scale=True)
    assert tuned
    with pytest.raises(UserError, match=r"skim\+:odd: 'odd' must be one of allocated, .*, tune"):
        exportable.parse_method("skim+:odd")


def test_rows_of_other_settings_are_refused(tmp_path):
    path = tmp_path / "rows.json"
    Results(path, {"tokens": 90, "context": 40})
    with pytest.raises(UserError, match="has rows with context 40, not 20"):
        Results(path, {"tokens": 90, "context": 20})
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "machine": {"processor": "another"}}))
    with pytest.raises(UserError, match=r"has rows with machine \{'processor': 'another'\}, not"):
        Results(path, {"tokens": 90, "context": 40})
    path.write_text("[1, 2")
    with pytest.raises(UserError, match="is no file of this benchmark"):
        Results(path, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "awq"], "--method awq: must be one of "),
        (["--bits", "9"], "--bits 9: must be from 1 to 8"),
        (["--methods", "rtn", "--ratio-to", "skim"], "--ratio-to skim: must be one of --methods rtn"),
        (["--plot", "plot.xyz"], "--plot plot.xyz: the name must end in one of"),
        (["--tokens", "100000"], "tokens, --tokens asks for 100000"),
        (["--calib", "nowhere.txt"], "--calib nowhere.txt: there is no such file"),
    ],
)
def test_mistakes(files, calls, options, message):
    with pytest.raises(UserError, match=message):
        quality.run(arguments(quality, files, *options))
    assert not calls


@pytest.fixture(scope="module")
def exported(files):
    directory = files / "demo"
    export(str(files / "model"), directory / "model.onnx", bits=3, method="rtn", head_bits=4)
    return directory


def test_whole_models(files, calls, exported, tmp_path, capsys):
    out = tmp_path / "rows.json"
    more = ["--mixtures", "Q2_K", "Q3_K_M", "--importance", "none", "columns", "fisher", "--exported", exported]
    quality_whole.run(arguments(quality_whole, files, *more, "--json", out))
    rows = {method: row for (method, _), row in saved(out).items()}
    labels = [f"{name} ({kind})" for name in ("Q2_K", "Q3_K_M") for kind in ("none", "columns", "fisher")]
    assert list(rows)[:-1] == [AS_DISTRIBUTED, *labels]
    assert len({row["texts"]["text.txt"]["perplexity"] for row in rows.values()}) == len(rows)

    q2_k = rows["Q2_K (none)"]
    types = {"q2_k": 64 + 32 + 2 * 160, "v": 32, "o": 64, "down": 160, "head": 320}  # rows of 64 weights, a layer
    blocks = {name: count * 64 // 256 for name, count in types.items()}
    nbytes = 2 * (84 * blocks["q2_k"] + 110 * (blocks["v"] + blocks["o"] + blocks["down"])) + 210 * blocks["head"]
    weights = 64 * (2 * (sum(types.values()) - 320) + 320)
    assert q2_k["effective_bits"] == pytest.approx(8 * nbytes / weights)
    assert q2_k["megabytes"] == pytest.approx((nbytes + 4 * 5 * 64) / 1e6)  # and five norms

    report = json.loads((exported / "export.json").read_text())["parts"]
    packed = [part for part in report if part["name"] in ("linear layers", "embedding and head")]
    row = list(rows.values())[-1]
    assert row["effective_bits"] == pytest.approx(
        8 * sum(p["bytes"] for p in packed) / sum(p["weights"] for p in packed)
    )
    assert row["megabytes"] == pytest.approx(report[-1]["bytes"] / 1e6)
    assert row["texts"]["text.txt"]["kl_mean"] > 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "_K" in line]
    assert len(lines) == 6

    calls.clear()
    quality_whole.run(arguments(quality_whole, files, *more, "--json", out))
    assert not calls


def test_mixtures_follow_their_rules():
    mixture = quality_whole.MIXTURES["Q3_K_M"]
    assert [mixture.of_linear("v_proj", layer, 32) for layer in (0, 1, 2, 31)] == ["q5_k", "q5_k", "q4_k", "q4_k"]
    assert [mixture.of_linear("down_proj", layer, 32) for layer in (1, 2)] == ["q5_k", "q4_k"]
    assert mixture.of_linear("q_proj", 0, 32) == "q3_k"
    small = quality_whole.MIXTURES["Q2_K_S"]
    assert [small.of_linear("down_proj", layer, 30) for layer in (2, 3)] == ["q4_k", "q2_k"]


def test_mistakes_about_whole_models(files, calls, tmp_path):
    with pytest.raises(UserError, match="--mixtures Q9: must be of Q2_K_S; "):
        quality_whole.run(arguments(quality_whole, files, "--mixtures", "Q9"))
    with pytest.raises(UserError, match=r"--exported .*: has no model.onnx"):
        quality_whole.run(arguments(quality_whole, files, "--exported", tmp_path))
    assert not calls


def test_published_figures_come_with_a_command_that_is_understood(capsys):
    parser = argparse.ArgumentParser()
    quality.add_arguments(parser)
    with pytest.raises(SystemExit) as left:
        parser.parse_args(["--published"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for of_model in published.PUBLISHED:
        assert of_model.command() in shown
        options = parser.parse_args(of_model.command().split()[3:])
        assert (options.model, options.context, options.tokens) == (of_model.model, of_model.context, of_model.tokens)
        assert options.tokens % options.context == 0
