"""What an export is said to take, and the memory that it is allowed."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from skim_export import export
from skim_export.checkpoint import DECLARATIONS, Checkpoint, Model, Recipe, load_recipes, model, recipes
from skim_export.checkpoint.recipes import HubSource
from skim_export.cli.main import main
from skim_export.pipeline import calibration_text, recipe_sizes
from skim_export.pipeline.cost import estimate_cost, estimate_sizes
from skim_export.pipeline.export import prepare, run
from skim_export.pipeline.memory import peak_memory
from skim_export.pipeline.options import ExportOptions
from skim_export.quantize import METHODS, Method
from skim_export.quantize.level_fits import RangeLevels
from skim_export.work import resources
from skim_export.work.resources import ROW_GROUP, Resources
from skim_runtime.errors import UserError

from ..tiny_models import TEXT, tiny_llama, tiny_mistral


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama") / "hf", hidden_size=128, intermediate_size=800)


@pytest.fixture(scope="module")
def calib(tmp_path_factory):
    path = tmp_path_factory.mktemp("calib") / "calib.txt"
    path.write_text(TEXT * 180)
    return path


@pytest.mark.parametrize("effort", ["weights", "calibrated", "tuned"])
@pytest.mark.parametrize("given", [True, False], ids=["calib", "no calib"])
def test_every_step_has_its_time(llama, calib, tmp_path, effort, given):
    job = prepare(
        str(llama), tmp_path / "out" / "model.onnx", ExportOptions(effort=effort, calib=calib if given else None)
    )
    cost = estimate_cost(job)
    steps = {"hashing the model", "writing", "quantizing"}
    if effort != "weights":
        steps |= {"calibration"} if given else {"calibration", "writing text"}
    if effort == "tuned":
        steps |= {"tuning"}
    assert set(cost.seconds) == steps
    assert min(cost.seconds.values()) > 0
    assert cost.sizes.output < cost.sizes.disk
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 3, "effort": "weights"},
        pytest.param({"bits": 2.5, "head_bits": 4, "codebook": "float16"}, marks=pytest.mark.slow),
        pytest.param({"bits": 4, "method": "rtn"}, marks=pytest.mark.slow),
        pytest.param({"effective_bits": 4.5}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_sizes_are_about_right(llama, calib, tmp_path, options):
    cost = estimate_cost(prepare(str(llama), tmp_path / "out" / "model.onnx", ExportOptions(calib=calib, **options)))
    report = export(str(llama), tmp_path / "out" / "model.onnx", calib=calib, **options)
    assert cost.sizes.output == pytest.approx(report.parts[-1].nbytes, rel=0.05)


@pytest.fixture
def absent(llama, monkeypatch):
    """Alias of a recipe with the shapes of `llama`, whose model is not here and must not be downloaded."""
    config = Checkpoint(llama).raw_config
    monkeypatch.setitem(load_recipes(), "absent", Recipe("absent", "Absent", "MIT", HubSource("a/b"), 2.0, config))
    monkeypatch.setattr(model, "is_here", lambda recipe: False)
    monkeypatch.setattr(recipes, "_download", lambda *_: pytest.fail("downloads"))
    return "absent"


def test_sizes_follow_from_shapes(llama, absent, tmp_path):
    """Of a model that is not here they are what they are of the model itself."""
    output, options = tmp_path / "out" / "model.onnx", ExportOptions(effort="tuned", head_bits="auto")
    there, here = (prepare(name, output, options, download=False) for name in (absent, str(llama)))
    assert there.budget.bits == 2
    assert there.model.only_shapes
    assert not here.model.only_shapes
    here = replace(here, budget=there.budget)
    found, wanted = estimate_sizes(there), estimate_sizes(here)
    assert (found.output, found.disk) == (wanted.output, wanted.disk)
    assert found.memory == pytest.approx(wanted.memory, abs=16 << 20)  # this process's own is part of it
    with pytest.raises(UserError, match="model absent: was not downloaded, and its shapes are not enough"):
        run(there)


def test_memory_if_a_text_was_given(llama, calib, tmp_path):
    output = tmp_path / "out" / "model.onnx"
    without, given = (estimate_sizes(prepare(str(llama), output, ExportOptions(calib=text))) for text in (None, calib))
    assert without.memory_given_text == pytest.approx(given.memory, abs=16 << 20)
    assert given.memory_given_text == pytest.approx(given.memory, abs=1 << 20)
    large = Model.of_shapes(load_recipes()["qwen2.5-0.5b"])
    without = estimate_sizes(replace(prepare(str(llama), output, ExportOptions()), model=large))
    assert without.memory_given_text < without.memory - 10**9


@pytest.mark.parametrize("effort", ["weights", "tuned"])
def test_a_dry_run_downloads_nothing(absent, tmp_path, capsys, effort):
    assert main(["--model", absent, "--dry-run", "--effort", effort, "-o", str(tmp_path / "out" / "model.onnx")]) == 0
    out = capsys.readouterr().err
    assert "GB stay; from the recipe's shapes: nothing was downloaded\n" in out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_finds_what_a_bundle_cannot_run(monkeypatch, tmp_path, capsys):
    """From the recipe's shapes, where a download would come first."""
    monkeypatch.setattr(model, "is_here", lambda recipe: False)
    arguments = ["--model", "lfm2-350m", "--dry-run", "--target", "rpi5", "-o", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "the runtime of bundles has no such operator" in capsys.readouterr().err


def test_the_list_of_models(absent, tmp_path, monkeypatch, capsys):
    chosen = {alias: load_recipes()[alias] for alias in (absent, "gpt-oss-20b", "llama-3.2-1b")}
    monkeypatch.setattr(recipe_sizes, "load_recipes", lambda: chosen)
    monkeypatch.delitem(DECLARATIONS, "GptOssForCausalLM")
    assert main(["models", "--json", str(tmp_path / "models.json")]) == 0
    out = capsys.readouterr().out
    lines = {words[0]: " ".join(words) for words in map(str.split, out.splitlines()) if words}
    assert lines["gpt-oss-20b"].endswith("Apache-2.0 20.9B 3 not yet")
    assert "Llama 3.2 Community License, gated 1.24B 4 0." in lines["llama-3.2-1b"]
    models = {one["alias"]: one for one in json.loads((tmp_path / "models.json").read_text())["models"]}
    assert models["gpt-oss-20b"]["sizes"] is None
    sizes = estimate_sizes(prepare(absent, tmp_path / "out" / "model.onnx", ExportOptions(), download=False))
    found = models[absent]["sizes"]
    assert (found["output"], found["disk"]) == (sizes.output, sizes.disk)


def test_the_list_of_models_goes_nowhere(tmp_path, capsys):
    assert main(["models", "--json", str(tmp_path / "gone" / "models.json")]) == 2
    assert "there is no directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "method", ["weights", "skim+", *(pytest.param(m, marks=pytest.mark.slow) for m in ("skim", "gptq"))]
)
def test_the_memory_allowed_does_not_change_the_result(llama, calib, tmp_path, method, monkeypatch):
    """Rows in runs of 256, of 800 that the layers have, or all at once."""
    monkeypatch.setattr(calibration_text, "SEQUENCES", 8)
    files = []
    for name, chunk_bytes in (("large", 1 << 30), ("small", 1)):
        monkeypatch.setattr(resources, "RUN_BYTES", chunk_bytes)
        chunks = Resources.of(2, None).chunks(800, 128)
        assert len(chunks) == {"large": 1, "small": -(-800 // ROW_GROUP)}[name]
        options = {"effort": "weights"} if method == "weights" else {"method": method}
        export(str(llama), tmp_path / name / "model.onnx", bits=3, calib=calib, **options)
        files.append(json.loads((tmp_path / name / "export.json").read_text()))
    assert files[0] == files[1]


def test_a_method_is_written_once(llama, calib, tmp_path, monkeypatch):
    """All parts together, with an objective of its own: costs, budget and export follow from what it says."""

    def root(statistics, rows):
        return np.sqrt(statistics.fisher(rows))

    method = Method(root, RangeLevels(), allocation=True, column_scale=True, correlated=True)
    monkeypatch.setitem(METHODS, "new", method)
    monkeypatch.setattr(calibration_text, "SEQUENCES", 4)
    options = {"calib": calib, "method": "new", "effective_bits": 4, "head_bits": "auto"}
    cost = estimate_cost(prepare(str(llama), tmp_path / "out" / "model.onnx", ExportOptions(**options)))
    report = export(str(llama), tmp_path / "out" / "model.onnx", **options)
    assert cost.sizes.output == pytest.approx(report.parts[-1].nbytes, rel=0.05)
    scaled = {tensor.name for tensor in onnx.load(report.path, load_external_data=False).graph.initializer}
    assert any(name.endswith("column_scale") for name in scaled)


def test_too_little_memory(llama, tmp_path):
    with pytest.raises(UserError, match=r"--max-memory 0\.10GB: too small, this export takes at least \d+\.\d\dGB"):
        prepare(str(llama), tmp_path / "out" / "model.onnx", ExportOptions(effort="weights", max_memory=100_000_000))


def test_less_memory_means_smaller_pieces(tmp_path):
    path = tiny_mistral(tmp_path / "hf", vocab_size=200_000)
    output = tmp_path / "out" / "model.onnx"
    job = prepare(str(path), output, ExportOptions(effort="weights"))
    most = peak_memory(job)
    limit = most - 100_000_000
    limited = prepare(str(path), output, ExportOptions(effort="weights", max_memory=limit))
    assert limited.executor.resources.chunk_bytes < job.executor.resources.chunk_bytes
    assert peak_memory(limited) <= limit + 10_000_000  # this process has grown meanwhile


def test_dry_run(capsys, llama, calib, tmp_path):
    output = tmp_path / "out" / "model.onnx"
    assert main(["--model", str(llama), "--calib", str(calib), "-o", str(output), "--dry-run"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("about ")
    for what in ("calibration", "quantizing", "GB of memory", "GB of disk", "GB stay"):
        assert what in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-memory", "4 parsecs"], ["--max-memory", "parsecs"]),
        (["--max-memory", "1MB"], ["--max-memory", "too small"]),
    ],
)
def test_mistakes_are_one_line(capsys, llama, tmp_path, arguments, words):
    assert main(["--model", str(llama), "-o", str(tmp_path / "out" / "model.onnx"), *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    for word in words:
        assert word in line


def test_a_method_has_no_effort():
    with pytest.raises(UserError, match="--method gptq: cannot be combined with --effort weights"):
        ExportOptions(effort="weights", method="gptq")
    with pytest.raises(UserError, match="--effort most: must be one of weights, calibrated, tuned"):
        ExportOptions(effort="most")
