"""`skim-export bundle` and `skim-export --target`, with the real kernels."""

import json
import shutil

import pytest

from skim_export.bundle.bundle import MANIFEST
from skim_export.cli.main import main
from skim_runtime import Session, generate

from ..tiny_decoders import tiny_decoder
from ..tiny_models import tiny_llama
from ..tools import require, require_packages
from .models import random_tokens
from .native import run


@pytest.fixture(autouse=True)
def tvm():
    require_packages("tvm")


def greedy(bundle, prompt, count, emulator=()):
    arguments = ["-t", 2, "-n", count, "-e", -1, bundle / "weights.bin", *prompt]
    done = run(*emulator, bundle / "skim_run", *arguments)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize(
    ("target", "tools"),
    [
        ("x86-avx2", ["gcc"]),
        pytest.param("rpi5", ["aarch64-linux-gnu-gcc", "qemu-aarch64"], marks=pytest.mark.slow),
    ],
)
def test_a_bundle_gives_the_tokens_of_onnxruntime(tiny, tmp_path, target, tools):
    require("make", *tools)
    model = tiny("llama").path
    assert main(["bundle", str(model), "--target", target, "-o", str(tmp_path / "bundle")]) == 0
    prompt = random_tokens(40, seed=3)
    expected = generate(Session(model, threads=1), prompt, max_new_tokens=16, stop=()).tokens
    assert greedy(tmp_path / "bundle", prompt, 16, tools[1:]) == expected
    undefined = run("nm", "-u", tmp_path / "bundle" / "skim_kernels.o").stdout
    assert undefined.strip() == ""


def test_several_targets(tiny, tmp_path, capsys):
    model = tiny("llama").path
    arguments = ["bundle", str(model), "--target", "opencl", "--target", "webgpu", "-o", str(tmp_path / "bundles")]
    assert main(arguments) == 0
    for name, source in (("opencl", "cl"), ("webgpu", "wgsl")):
        manifest = json.loads((tmp_path / "bundles" / name / MANIFEST).read_text())
        assert manifest["target"] == name
        assert {"weights.bin", "kernels.json"} <= manifest["files"].keys()
        assert any(file.endswith(f".{source}") for file in manifest["files"])
        linear = manifest["linears"]["model.layers.0.attn.qkv_proj"]
        assert all(rows["codes"] % 4 == 0 for rows in linear["rows"])
    assert "for opencl: " in capsys.readouterr().out


def test_export_for_a_target(tmp_path, capsys):
    require("gcc", "make")
    checkpoint = tiny_llama(tmp_path / "checkpoint")
    output = tmp_path / "bundle"
    arguments = [
        "--model",
        str(checkpoint),
        "--bits",
        "3",
        "--method",
        "rtn",
        "--target",
        "x86-avx2",
        "-o",
        str(output),
    ]
    assert main(arguments) == 0
    assert f"wrote {output} for x86-avx2: " in capsys.readouterr().out
    assert (output / MANIFEST).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "checkpoint"]
    assert main(arguments) == 2
    assert "is not empty; use --force" in capsys.readouterr().err


def test_a_model_that_bundles_do_not_run_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("skim_export.pipeline.export.run", None)
    checkpoint = tiny_decoder("hunyuan", tmp_path / "checkpoint")
    arguments = ["--model", str(checkpoint), "--bits", "3", "--target", "x86-avx2", "-o", str(tmp_path / "bundle")]
    for more in ([], ["--dry-run"]):
        assert main([*arguments, *more]) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
        assert line.endswith(
            "proof.onnx: RotaryEmbedding /model/layers.0/attn/q_rotary/RotaryEmbedding: "
            "the runtime of bundles has no such operator"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "rpi6"], "--target rpi6: unknown target; did you mean rpi5?"),
        (["--target", "x86-avx2", "--target", "toaster"], "--target toaster: unknown target; there are "),
    ],
)
def test_unknown_targets_write_nothing(tiny, tmp_path, capsys, arguments, message):
    assert main(["bundle", str(tiny("llama").path), *arguments, "-o", str(tmp_path / "bundle")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file(tiny, tmp_path, capsys):
    (tmp_path / "bundle").write_text("mine")
    assert main(["bundle", str(tiny("llama").path), "--target", "rpi5", "-o", str(tmp_path / "bundle")]) == 2
    assert "is a file; a bundle is a directory" in capsys.readouterr().err


def test_a_missing_compiler_is_named_with_its_package(tiny, tmp_path, capsys, monkeypatch):
    find = shutil.which
    monkeypatch.setattr("shutil.which", lambda name: None if "gnu-gcc" in name else find(name))
    assert main(["bundle", str(tiny("llama").path), "--target", "rpi5", "-o", str(tmp_path / "bundle")]) == 0
    assert "aarch64-linux-gnu-gcc is not installed (apt install gcc-aarch64-linux-gnu)" in capsys.readouterr().out
    assert not (tmp_path / "bundle" / "skim_run").exists()
