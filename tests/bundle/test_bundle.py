import hashlib
import json

import numpy as np
import pytest

from skim_export.bundle.bundle import MANIFEST, build_bundle
from skim_export.graph.reader import read_packed
from skim_runtime import Session, UserError, generate

from ..tools import require
from .models import random_tokens
from .native import Device, bundle, reference_kernels, run

DEVICES = {
    "aarch64": ("aarch64-linux-gnu-gcc", "-mcpu=cortex-a72", "qemu-aarch64"),
    "armv7": ("arm-linux-gnueabihf-gcc", "-march=armv7-a+neon-vfpv4", "qemu-arm"),
    "riscv64": ("riscv64-linux-gnu-gcc", "-march=rv64gc", "qemu-riscv64"),
}


@pytest.fixture(scope="module")
def compiled(tiny, tmp_path_factory):
    """The bundle of a model with biases, compiled for this machine."""
    require("make")
    return bundle(tiny("biased").path, tmp_path_factory.mktemp("bundle") / "biased", Device(compiles=True))


@pytest.mark.parametrize("name", DEVICES)
def test_programs_for_other_machines_give_the_same_tokens(name, tiny, tmp_path):
    compiler, flag, emulator = DEVICES[name]
    require(compiler, emulator, "make")
    device = Device(name, compiler_name=compiler, compiler_flags=(flag,), compiles=True)
    directory = bundle(tiny("llama").path, tmp_path / name, device)
    prompt = random_tokens(40, seed=1)
    expected = generate(Session(tiny("llama").path, threads=1), prompt, max_new_tokens=12, stop=()).tokens
    arguments = ["-t", 2, "-n", 12, "-e", -1, directory / "weights.bin", *prompt]
    done = run(emulator, directory / "skim_run", *arguments)
    assert done.returncode == 0, done.stderr
    assert [int(word) for word in done.stdout.split()] == expected


def test_the_example_computes_a_product(tiny, compiled):
    done = run(compiled / "skim_example", compiled / "weights.bin")
    assert done.returncode == 0, done.stderr
    packed = read_packed(tiny("biased").path / "model.onnx")["model.layers.0.attn.qkv_proj"]
    x = np.arange(packed.in_features) % 7 - 3
    y = np.array([float(line) for line in done.stdout.split()])
    reference = packed.dequantize().astype(np.float64) @ x
    assert np.linalg.norm(y - reference) / np.linalg.norm(reference) < 1e-5


def test_the_example_needs_the_weights(compiled):
    done = run(compiled / "skim_example")
    assert (done.returncode, done.stderr) == (2, "skim_example: error: usage: skim_example weights.bin\n")


def test_the_manifest_names_every_file(tiny, compiled):
    manifest = json.loads((compiled / MANIFEST).read_text())
    assert manifest["files"].keys() | {MANIFEST} == {path.name for path in compiled.iterdir()}
    for name, file in manifest["files"].items():
        data = (compiled / name).read_bytes()
        assert file == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert manifest["target"] == "host"
    assert manifest["classes"] == ["table2_int8", "table3_int8", "table4_int8", "affine8"]
    assert manifest["context_length"] == 512
    assert manifest["programs"]["compiled"]
    assert {"tokenizer.json", "skim_run", "skim_example"} <= manifest["files"].keys()


def test_a_model_gives_the_same_bytes(tiny, tmp_path):
    one, two = (bundle(tiny("biased").path, tmp_path / name) for name in ("one", "two"))
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name


def test_a_bundle_can_be_replaced(tiny, tmp_path):
    bundle(tiny("biased").path, tmp_path / "bundle")
    bundle(tiny("llama").path, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / MANIFEST).read_text())
    for name, file in manifest["files"].items():
        assert file["sha256"] == hashlib.sha256((tmp_path / "bundle" / name).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (Device(compiler_name="nowhere-gcc", compiles=True), "nowhere-gcc is not installed"),
        (Device(compiler_name="cc", compiler_flags=("-mcpu=nothing",), compiles=True), "cc failed: "),
    ],
)
def test_without_a_compiler_the_sources_are_there(device, reason, tiny, tmp_path, caplog):
    output = tmp_path / "bundle"
    manifest = build_bundle(tiny("llama").path, device, output, reference_kernels())
    assert not manifest["programs"]["compiled"]
    assert reason in manifest["programs"]["reason"]
    assert reason in caplog.text
    assert not (output / "skim_run").exists()
    assert {path.suffix for path in output.iterdir() if path.name.startswith("skim_")} == {".c", ".h", ".o"}
    assert [path.name for path in output.glob("*.o")] == ["skim_kernels.o"]


def test_a_directory_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no genai_config"):
        build_bundle(tmp_path, Device(), tmp_path / "bundle", reference_kernels())
    assert not (tmp_path / "bundle").exists()


def test_a_failing_kernel_compiler_leaves_nothing(tiny, tmp_path):
    def fail(products, gathers):
        raise UserError("no such target")

    with pytest.raises(UserError, match="no such target"):
        build_bundle(tiny("llama").path, Device(), tmp_path / "bundle", fail)
    assert list(tmp_path.iterdir()) == []
