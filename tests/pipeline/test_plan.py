"""What `skim-export plan` expects, against what exports and brute force give."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from skim_export import export
from skim_export.calibration.calibrate_model import gather_statistics
from skim_export.calibration.statistics_store import StatisticsStore
from skim_export.checkpoint import Checkpoint, Model, linear_weight
from skim_export.cli.main import main
from skim_export.packed.checkpoint import PackedCheckpoint
from skim_export.pipeline import plan as plan_module
from skim_export.pipeline.budget import Budget
from skim_export.pipeline.calibration_text import CalibrationText
from skim_export.pipeline.plan import AVERAGES as DEFAULT_BITS
from skim_export.pipeline.plan import expected_loss, plan
from skim_export.pipeline.quantize_linear import QuantizeOptions
from skim_export.pipeline.quantize_model import allocate, linear_tasks
from skim_export.quantize import METHODS
from skim_export.work.resources import Resources
from skim_export.work.tasks import SerialExecutor, do_tasks
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from ..tiny_models import TEXT, tiny_llama, tiny_mistral

COMMON = {"resources": Resources(1), "progress": Progress()}
BITS = (1.5, 2, 2.5, 3)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama") / "hf", hidden_size=128, intermediate_size=256)


@pytest.fixture(scope="module")
def calib(tmp_path_factory):
    path = tmp_path_factory.mktemp("calib") / "calib.txt"
    path.write_text(TEXT * 180)
    return path


@pytest.fixture(scope="module")
def planned(llama, calib):
    return plan(str(llama), bits=BITS, calib=calib, codebook="float16", threads=1)


def test_more_bits_are_larger_and_lose_less(planned):
    assert [row.bits for row in planned.rows] == list(BITS)
    assert (np.diff([row.nbytes for row in planned.rows]) > 0).all()
    assert (np.diff([row.effective_bits for row in planned.rows]) > 0).all()
    assert (np.diff([row.quadratic for row in planned.rows]) < 0).all()
    assert (np.diff([row.perplexity_factor for row in planned.rows]) < 0).all()
    assert planned.rows[-1].perplexity_factor > 1
    assert planned.full_perplexity is None
    assert {row.perplexity for row in planned.rows} == {None}


def test_the_quadratic_form_is_that_of_real_quantization(llama, calib, tmp_path, monkeypatch):
    """`0.5 * sum F d^2` from packed weights: exact k-means loses what was expected, column scales a little less."""
    monkeypatch.setattr(plan_module, "DEFAULT_METHOD", "skim")
    (row,) = plan(str(llama), bits=[2.5], calib=calib, codebook="float16", threads=1).rows
    model, store = Model.open(llama), StatisticsStore(tmp_path)
    tokens = CalibrationText(calib, seed=0).tokens(model, **COMMON)
    gather_statistics(model, tokens, store, **COMMON)
    options = QuantizeOptions(METHODS["skim"], codebook="float16")
    common = {"executor": SerialExecutor(Resources(1)), "progress": Progress()}
    widths = allocate(model, store, options, Budget(2.5), curves=tmp_path, **common)
    lost = {}
    for method in ("squeezellm", "skim"):
        options, packed = QuantizeOptions(METHODS[method], codebook="float16"), PackedCheckpoint(tmp_path / method)
        tasks = linear_tasks(model, store, widths, packed, options, Resources(1))
        do_tasks("quantizing", tasks, **common)
        lost[method] = 0.0
        for linear in model.architecture.linears:
            error = linear_weight(model.checkpoint, linear).astype(np.float64) - packed.read(linear.name).dequantize()
            lost[method] += 0.5 * (store.fisher(linear.name) * error**2).sum()
    assert row.quadratic == pytest.approx(lost["squeezellm"], rel=2e-3)  # entries are rounded to float16
    assert 0.5 * row.quadratic < lost["skim"] < row.quadratic


@pytest.mark.parametrize(
    ("make", "tie", "bits", "head_bits", "codebook"),
    [
        (tiny_llama, True, 3, 8, "int8"),
        (tiny_mistral, False, 2.75, "auto", "int8"),
        pytest.param(tiny_mistral, False, 2.25, 4, "float16", marks=pytest.mark.slow),
    ],
)
def test_sizes_are_those_of_exports(calib, tmp_path, make, tie, bits, head_bits, codebook):
    path = make(tmp_path / "hf", tie=tie, hidden_size=128, intermediate_size=256)
    options = {"head_bits": head_bits, "codebook": codebook, "calib": calib, "threads": 1}
    exported = export(str(path), tmp_path / "out" / "model.onnx", bits=bits, **options)
    (row,) = plan(str(path), bits=[bits], **options).rows
    assert row.nbytes == pytest.approx(exported.parts[-1].nbytes, rel=0.01)
    budgeted = exported.parts[: 2 if head_bits == "auto" else 1]
    stored = 8 * sum(part.nbytes for part in budgeted) / sum(part.weights for part in budgeted)
    assert row.effective_bits == pytest.approx(stored, rel=1e-3)


def test_a_size_is_a_budget(llama, calib):
    size = 1_300_000
    rows = plan(str(llama), bits=[2], sizes=[size], head_bits=7, calib=calib, threads=1).rows
    assert rows[0].bits == 2
    assert rows[0].nbytes < rows[1].nbytes <= size
    assert 2 < rows[1].bits < 8


def test_a_size_is_shared_by_embedding_and_head(llama, calib):
    """As in an export of that size: less is lost than with a head of 8 bits, whose own errors are not even counted."""
    options = {"sizes": [1_250_000], "calib": calib, "threads": 1}
    (shared,) = plan(str(llama), bits=[], **options).rows
    (apart,) = plan(str(llama), bits=[], head_bits=8, **options).rows
    assert max(shared.nbytes, apart.nbytes) <= 1_250_000
    assert shared.quadratic < apart.quadratic


def test_perplexity_starts_from_that_of_full_precision(llama, calib, planned, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 7)
    found = plan(str(llama), bits=[2], calib=calib, codebook="float16", text=text, threads=1)
    ids = torch.tensor(Checkpoint(llama).tokenizer.encode(text.read_text(), add_special_tokens=False))
    assert ids.numel() > 512  # the model's own context: more than one window
    model, losses = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32), []
    for window in ids.split(512):
        with torch.no_grad():
            logits = model(window[None]).logits[0, :-1].double()
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none"))
    assert found.full_perplexity == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-5)
    row, without = found.rows[0], planned.rows[BITS.index(2)]
    assert row.quadratic == without.quadratic
    assert row.perplexity == pytest.approx(found.full_perplexity * math.exp(row.loss_increase))


def test_the_number_of_threads_does_not_matter(llama, calib, planned):
    assert plan(str(llama), bits=BITS, calib=calib, codebook="float16", threads=3) == planned


def test_the_loss_is_a_power_law(monkeypatch):
    monkeypatch.setattr(plan_module, "LOSS_SCALE", 3.0)
    monkeypatch.setattr(plan_module, "LOSS_POWER", 0.5)
    assert expected_loss(4.0) == pytest.approx(6.0)


def test_command(llama, calib, capsys, tmp_path):
    file = tmp_path / "plan.json"
    arguments = ["plan", "--model", str(llama), "--calib", str(calib), "--text", str(calib), "--threads", "1"]
    assert main([*arguments, "--bits", "2", "1", "--budget-size", "1.3MB", "--json", str(file)]) == 0
    told = json.loads(file.read_text())
    assert told["model"] == str(llama)
    assert [row["bits"] for row in told["rows"]][:2] == [1, 2]
    for row in told["rows"]:
        assert row["loss_increase"] == pytest.approx(expected_loss(row["quadratic"]))
        assert row["perplexity_factor"] == pytest.approx(math.exp(row["loss_increase"]))
        assert row["perplexity"] == pytest.approx(told["full_perplexity"] * row["perplexity_factor"])
        assert row["nbytes"] > row["effective_bits"] / 8 * 2 * 3 * 128 * 256
    printed = capsys.readouterr().out
    assert "Predicted, not measured" in printed
    bars = [line.count("█") + line.count("#") for line in printed.splitlines() if line.strip()[:1] in "12"]
    assert bars[0] > bars[1] > 0
    for row in told["rows"]:
        assert f"{row['nbytes'] / 1e6:.2f}" in printed


@pytest.mark.parametrize(
    "wrong",
    [
        ("--bits", "9"),
        ("--bits", "3", "0.5"),
        ("--bits", "nan"),
        ("--budget-size", "2parsecs"),
        ("--budget-size", "20KB"),
        ("--head-bits", "0"),
        ("--threads", "0"),
        ("--seed", "-1"),
        ("--text", "none.txt"),
        ("--calib", "none.txt"),
        ("--json", "none/plan.json"),
    ],
    ids=" ".join,
)
def test_mistakes_are_one_line(llama, calib, capsys, wrong):
    assert main(["plan", "--model", str(llama), "--calib", str(calib), *wrong]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "too small" in line or (wrong[0] in line and wrong[-1] in line)


def test_an_unknown_model(capsys):
    assert main(["plan", "--model", "mistal-7b"]) == 2
    assert "mistral-7b" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\xff\xfe"], ids=["empty", "not UTF-8"])
def test_a_text_that_is_none(llama, tmp_path, content):
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    with pytest.raises(UserError, match=r"--text .*text\.txt"):
        plan(str(llama), text=text, threads=1)


def test_export_still_needs_its_output(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--model", "plan"])
    assert "--output" in capsys.readouterr().err


def test_help_names_the_default_budgets(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["plan", "--help"])
    assert " ".join(f"{bits:g}" for bits in DEFAULT_BITS) in " ".join(capsys.readouterr().out.split())


def test_help_is_quick_to_import():
    code = "import sys; from skim_export.cli import plan; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]
