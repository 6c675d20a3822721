"""`--device`: what it may be, and exports on one. There is no GPU here: see `elsewhere.py` for what stands for one."""

import json
from dataclasses import replace

import pytest
import torch

from skim_export.cli.main import main
from skim_export.pipeline import calibration_text
from skim_export.pipeline import export as pipeline
from skim_export.pipeline.cost import estimate_cost
from skim_export.pipeline.export import prepare, run
from skim_export.pipeline.options import ExportOptions
from skim_export.work.device import device_named, float32_products
from skim_runtime.errors import UserError

from ..tiny_models import TEXT, tiny_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama") / "hf")


@pytest.fixture(scope="module")
def calib(tmp_path_factory):
    path = tmp_path_factory.mktemp("calib") / "calib.txt"
    path.write_text(TEXT * 180)
    return path


@pytest.fixture(autouse=True)
def short_text(monkeypatch):
    monkeypatch.setattr(calibration_text, "SEQUENCES", 4)
    monkeypatch.setattr(calibration_text, "LENGTH", 64)


def with_devices(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_names(monkeypatch):
    with_devices(monkeypatch, 2)
    assert device_named("cpu") is None
    assert device_named("cuda") == torch.device("cuda", 0)
    assert device_named("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["foo", "", "cuda:", "cuda:x", "cuda:-1", "CUDA", "cpu:0", "cuda:0 "])
def test_other_names(name):
    with pytest.raises(UserError, match=f"^--device {name}: must be cpu, cuda or cuda:N$"):
        device_named(name)


@pytest.mark.parametrize(
    ("name", "count", "seen"),
    [("cuda", 0, "no CUDA device"), ("cuda:1", 1, "1 CUDA device"), ("cuda:7", 2, "2 CUDA devices")],
)
def test_devices_that_are_not_there(monkeypatch, name, count, seen):
    with_devices(monkeypatch, count)
    with pytest.raises(UserError, match=f"^--device {name}: torch sees {seen}$"):
        device_named(name)


def test_a_mistake_is_one_line_before_anything_else(capsys, monkeypatch, tmp_path):
    with_devices(monkeypatch, 0)
    for name, reason in (("foo", "must be cpu, cuda or cuda:N"), ("cuda", "torch sees no CUDA device")):
        arguments = ["--model", str(tmp_path / "absent"), "-o", str(tmp_path / "out" / "model.onnx")]
        assert main([*arguments, "--device", name]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert f"--device {name}: {reason}" in line
    assert list(tmp_path.iterdir()) == []


def test_products_are_of_full_precision():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with float32_products():
            assert not torch.backends.cuda.matmul.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def layers(directory):
    return json.loads((directory / "export.json").read_text())["layers"]


@pytest.mark.parametrize("options", [{"bits": 3}, {"bits": 2.5, "head_bits": "auto"}, {"effort": "weights"}], ids=str)
def test_an_export_in_torch_loses_as_much(llama, calib, tmp_path, options):
    """On tensors of the CPU: any device but None is torch's."""
    for name, device in (("native", None), ("torch", torch.device("cpu"))):
        job = prepare(str(llama), tmp_path / name / "model.onnx", ExportOptions(calib=calib, threads=2, **options))
        run(replace(job, resources=replace(job.resources, device=device)))
    for native, torchs in zip(layers(tmp_path / "native"), layers(tmp_path / "torch"), strict=True):
        assert torchs["name"] == native["name"]
        assert torchs["error"] == pytest.approx(native["error"], rel=0.02), native["name"]


@pytest.mark.slow
def test_an_export_on_a_second_device(llama, tmp_path, monkeypatch, second_device):
    """From the text that the model writes to the layers, each step on that device; then on the CPU."""
    arguments = ["--model", str(llama), "--bits", "3", "--threads", "1"]
    assert main([*arguments, "-o", str(tmp_path / "cpu" / "model.onnx")]) == 0
    monkeypatch.setattr(pipeline, "device_named", lambda name: second_device)
    assert main([*arguments, "-o", str(tmp_path / "cuda" / "model.onnx"), "--device", "cuda"]) == 0
    assert json.loads((tmp_path / "cuda" / "export.json").read_text())["options"]["device"] == "cuda"
    for cpu, device in zip(layers(tmp_path / "cpu"), layers(tmp_path / "cuda"), strict=True):
        assert device["error"] == pytest.approx(cpu["error"], rel=0.02), cpu["name"]


def test_another_device_does_not_go_on_there(llama, calib, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline, "emit", interrupt)
    common = {"calib": calib, "threads": 1, "effort": "weights"}
    with pytest.raises(UserError, match="the same command goes on there"):
        run(prepare(str(llama), tmp_path / "out" / "model.onnx", ExportOptions(**common)))
    with_devices(monkeypatch, 1)
    with pytest.raises(UserError, match="keeps an unfinished export with device cpu, not cuda"):
        run(prepare(str(llama), tmp_path / "out" / "model.onnx", ExportOptions(device="cuda", **common)))


@pytest.mark.parametrize("effort", ["weights", "tuned"])
def test_its_cost(llama, tmp_path, effort, second_device):
    job = prepare(str(llama), tmp_path / "out" / "model.onnx", ExportOptions(effort=effort))
    resources = replace(job.resources, device=second_device)
    assert resources.workers == 1
    seconds = estimate_cost(replace(job, resources=resources)).seconds
    assert seconds.keys() == estimate_cost(job).seconds.keys()
    assert min(seconds.values()) > 0
