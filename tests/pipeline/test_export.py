"""The whole way from a checkpoint to a directory that runs, and what happens when something is wrong."""

import errno
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from skim_export import export
from skim_export.checkpoint import Model
from skim_export.cli.main import main
from skim_export.graph.reader import read_packed
from skim_export.packed.dequantized import dequantized_model
from skim_export.pipeline import calibration_text
from skim_export.pipeline.options import parse_size
from skim_export.quantize import METHODS
from skim_export.tuning import HELD_OUT
from skim_export.tuning.training import EPOCHS
from skim_export.work.files import staged_directory
from skim_runtime import Session, generate
from skim_runtime.errors import UserError

from ..tiny_models import TEXT, tiny_llama, tiny_mistral

TOKENS = np.random.default_rng(0).integers(2, 300, 64)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama") / "hf")


@pytest.fixture
def copy(llama, tmp_path):
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


@pytest.fixture(scope="module")
def calib(tmp_path_factory):
    path = tmp_path_factory.mktemp("calib") / "calib.txt"
    path.write_text(TEXT * 180)
    return path


def digests(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def run(*arguments):
    """`skim-export` with an exit code, as a user sees it."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from skim_export.cli.main import main; sys.exit(main())",
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("method", list(METHODS))
def test_an_export_runs_and_equals_its_weights(llama, calib, tmp_path, method):
    report = export(str(llama), tmp_path / "out" / "model.onnx", bits=3, method=method, calib=calib, accuracy_level=0)
    assert report.parts[0].code_bits == pytest.approx(3, abs=0.01)
    assert report.parts[0].code_bits <= 3
    packed = read_packed(tmp_path / "out" / "model.onnx")
    model = dequantized_model(Model.open(llama), packed.__getitem__)
    with torch.no_grad():
        want = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    got = Session(tmp_path / "out").logits(TOKENS)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def test_the_accuracy_level_chooses_the_arithmetic(llama, calib, tmp_path):
    logits = {}
    for level in (0, 4):
        directory = tmp_path / str(level)
        export(str(llama), directory / "model.onnx", bits=3, method="rtn", calib=calib, accuracy_level=level)
        session = Session(directory)
        assert ("integer" if level == 4 else "exact") in session.kernel
        logits[level] = session.logits(TOKENS)
    assert 0 < np.abs(logits[4] - logits[0]).max() < 5e-3 * np.abs(logits[0]).max()


@pytest.mark.parametrize("kernel", ["auto", "function"])
def test_an_export_for_cuda_is_the_same_model_in_half_precision(llama, calib, tmp_path, kernel):
    logits, tokens, packed = {}, {}, {}
    for ep in ("cpu", "cuda"):
        directory = tmp_path / ep
        export(str(llama), directory / "model.onnx", bits=3, method="rtn", calib=calib, accuracy_level=0, ep=ep)
        assert json.loads((directory / "export.json").read_text())["options"]["ep"] == ep
        packed[ep] = read_packed(directory / "model.onnx")
        session = Session(directory, kernel=kernel)
        logits[ep] = session.logits(TOKENS)
        tokens[ep] = generate(session, TOKENS.tolist(), max_new_tokens=20, stop=()).tokens
    assert tokens["cuda"] == tokens["cpu"]
    assert packed["cpu"].keys() == packed["cuda"].keys()
    for unit, linear in packed["cpu"].items():
        for name in linear.TENSORS:
            np.testing.assert_array_equal(getattr(linear, name), getattr(packed["cuda"][unit], name))
    assert 0 < np.linalg.norm(logits["cuda"] - logits["cpu"]) < 5e-3 * np.linalg.norm(logits["cpu"])
    inputs = {value.name: value.type.tensor_type.elem_type for value in onnx.load(directory / "model.onnx").graph.input}
    assert inputs["past_key_values.0.key"] == onnx.TensorProto.FLOAT16


def test_a_tuned_export_is_what_was_tuned(llama, calib, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration_text, "TUNING_SEQUENCES", HELD_OUT + 16)
    directory = tmp_path / "out"
    export(str(llama), directory / "model.onnx", bits=2, calib=calib, effort="tuned")
    assert list(tmp_path.iterdir()) == [directory]
    tuned = json.loads((directory / "export.json").read_text())["options"]["tuned"]
    assert 0 < tuned["steps"] <= 4 * EPOCHS
    assert 0 < tuned["after"] < tuned["before"]
    # The graph holds the tuned norms: with those of the checkpoint the outputs would be others.
    session = Session(directory)
    packed = read_packed(directory / "model.onnx")
    model = dequantized_model(Model.open(llama), packed.__getitem__)
    with torch.no_grad():
        untuned = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    got = session.logits(TOKENS)
    assert 1e-4 < np.abs(got - untuned).max() / np.abs(untuned).max() < 0.1


def test_export_json_tells_the_truth(llama, calib, tmp_path):
    out = tmp_path / "out"
    report = export(str(llama), out / "model.onnx", bits=2.5, calib=calib)
    told = json.loads((out / "export.json").read_text())
    assert set(told["files"]) == {path.name for path in out.iterdir()} - {"export.json"}
    for name, file in told["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == file["sha256"]
    assert told["options"]["bits"] == 2.5
    sizes = (out / "model.onnx").stat().st_size + (out / "model.onnx.data").stat().st_size
    assert report.parts[-1].nbytes == sizes
    packed = read_packed(out / "model.onnx")
    for layer in told["layers"]:
        assert layer["bytes"] == packed[layer["name"]].nbytes
        assert layer["code_bits"] == packed[layer["name"]].code_bits


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 1.3, "codebook": "float16"},  # the head has affine rows only, the layers float16 codebooks
        {"bits": 8, "head_bits": 1},
        {"bits": 8, "method": "rtn"},  # no codebook anywhere
        {"bits": 6.5, "head_bits": 6, "codebook": "float16"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel", ["auto", "function"])
def test_every_mixture_of_widths_and_types_runs(llama, calib, tmp_path, options, kernel):
    export(str(llama), tmp_path / "out" / "model.onnx", calib=calib, accuracy_level=0, **options)
    packed = read_packed(tmp_path / "out" / "model.onnx")
    model = dequantized_model(Model.open(llama), packed.__getitem__)
    with torch.no_grad():
        want = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    got = Session(tmp_path / "out", kernel=kernel).logits(TOKENS)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def test_budgets_are_kept(llama, calib, tmp_path):
    by_effective = export(str(llama), tmp_path / "a" / "model.onnx", effective_bits=4.5, calib=calib)
    assert 4.4 <= by_effective.parts[0].effective_bits <= 4.5
    for ep in ("cpu", "cuda"):
        by_size = export(str(llama), tmp_path / ep / "model.onnx", size=1_200_000, calib=calib, ep=ep)
        assert by_size.parts[-1].nbytes <= 1_200_000


@pytest.mark.parametrize(("make", "tie"), [(tiny_llama, True), (tiny_mistral, False)])
def test_embedding_and_head_in_the_allocation(calib, tmp_path, make, tie):
    path, directory = make(tmp_path / "hf", tie=tie), tmp_path / "out"
    export(str(path), directory / "model.onnx", bits=3.25, head_bits="auto", calib=calib, accuracy_level=0)
    packed = read_packed(directory / "model.onnx")
    assert sum(layer.code_bits * layer.out_features * layer.in_features for layer in packed.values()) == pytest.approx(
        3.25 * sum(layer.out_features * layer.in_features for layer in packed.values()), rel=1e-3
    )
    assert len(np.unique(packed["model.embed_tokens"].row_bits())) > 1
    model = dequantized_model(Model.open(path), packed.get)
    with torch.no_grad():
        want = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    got = Session(directory).logits(TOKENS)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def test_budgets_over_everything_are_kept(llama, calib, tmp_path):
    by_effective = export(str(llama), tmp_path / "a" / "model.onnx", effective_bits=4.5, head_bits="auto", calib=calib)
    weights = sum(part.weights for part in by_effective.parts[:2])
    stored = sum(part.nbytes for part in by_effective.parts[:2])
    assert 4.4 <= 8 * stored / weights <= 4.5
    by_size = export(str(llama), tmp_path / "b" / "model.onnx", size=1_200_000, calib=calib)
    assert by_size.parts[1].code_bits < 8
    assert by_size.parts[-1].nbytes <= 1_200_000


def test_the_seed_matters_and_the_number_of_threads_does_not(llama, tmp_path, monkeypatch):
    """The model writes its own calibration text here, a short one, so sampling is covered, too."""
    monkeypatch.setattr(calibration_text, "SEQUENCES", 20)
    monkeypatch.setattr(calibration_text, "LENGTH", 48)
    found = {}
    for threads, seed in ((1, 0), (3, 0), (2, 1)):
        output = tmp_path / f"{threads}-{seed}"
        export(str(llama), output / "model.onnx", bits=3, threads=threads, seed=seed)
        found[threads, seed] = digests(output)
    assert found[1, 0] == found[3, 0]
    assert found[2, 1]["model.onnx.data"] != found[1, 0]["model.onnx.data"]


def test_mistral_with_sliding_window_and_its_own_head(calib, tmp_path):
    path = tiny_mistral(tmp_path / "hf", sliding_window=16, tie=False)
    options = {"bits": 3.5, "head_bits": 6, "codebook": "float16", "accuracy_level": 0}
    export(str(path), tmp_path / "out" / "model.onnx", calib=calib, **options)
    packed = read_packed(tmp_path / "out" / "model.onnx")
    assert {"lm_head", "model.embed_tokens"} <= set(packed)
    model = dequantized_model(Model.open(path), packed.__getitem__)
    with torch.no_grad():
        want = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    got = Session(tmp_path / "out").logits(TOKENS)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


# What can go wrong. Each case: one line, exit code 2, and nothing left behind.


def refused(capsys, tmp_path, *arguments, keeps_work=False):
    """The error line of an export that must fail and leave no file, but what is kept for another attempt."""
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "out" / "model.onnx"
    assert main([*map(str, arguments), "-o", str(out)]) == 2
    work = tmp_path / ".out.work"
    assert work.exists() == keeps_work
    shutil.rmtree(work, ignore_errors=True)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and path != out.parent] == []
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0]


def test_text_too_short_to_tune_on(capsys, tmp_path, llama, calib):
    line = refused(capsys, tmp_path, "--model", llama, "--calib", calib, "--effort", "tuned")
    assert f"{calibration_text.TUNING_SEQUENCES} windows" in line
    assert calib.name in line


def test_an_execution_provider_for_a_bundle(capsys, tmp_path, llama):
    assert "--ep" in refused(capsys, tmp_path, "--model", llama, "--ep", "cuda", "--target", "rpi5")


def test_unknown_execution_provider(llama, tmp_path):
    with pytest.raises(UserError, match="--ep rocm: must be cpu or cuda"):
        export(str(llama), tmp_path / "model.onnx", ep="rocm")


def test_unknown_alias(capsys, tmp_path):
    line = refused(capsys, tmp_path, "--model", "mistal-7b")
    assert "mistal-7b" in line
    assert "mistral-7b" in line


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--bits", 9),
        ("--bits", 0.5),
        ("--effective-bits", 0),
        ("--head-bits", 0),
        ("--size", "2 parsecs"),
        ("--size", "."),
        ("--size", "GB"),
        ("--size", "1.2.3GB"),
    ],
)
def test_numbers_out_of_range(capsys, llama, tmp_path, option, value):
    line = refused(capsys, tmp_path, "--model", llama, option, value)
    assert option in line
    assert str(value) in line


def test_a_size_that_cannot_be_reached(capsys, llama, calib, tmp_path):
    assert "too small" in refused(capsys, tmp_path, "--model", llama, "--size", "20KB", "--calib", calib)


def test_unsupported_architecture(capsys, copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "architectures": ["FalconForCausalLM"]}))
    line = refused(capsys, tmp_path, "--model", copy)
    assert "FalconForCausalLM is not supported; supported, each with ForCausalLM: " in line
    assert " Llama, " in line


def test_truncated_weights(capsys, copy, tmp_path):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert str(file) in refused(capsys, tmp_path, "--model", copy)


def test_nan_weights(capsys, copy, calib, tmp_path):
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, copy / "model.safetensors")
    assert "model.layers.1.mlp.up_proj.weight" in refused(capsys, tmp_path, "--model", copy, "--calib", calib)


def test_missing_tokenizer(capsys, copy, tmp_path):
    (copy / "tokenizer.json").unlink()
    assert "tokenizer" in refused(capsys, tmp_path, "--model", copy)


def test_calibration_text_missing_or_short(capsys, llama, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("short")
    assert "short.txt" in refused(capsys, tmp_path, "--model", llama, "--calib", short)
    assert "none.txt" in refused(capsys, tmp_path, "--model", llama, "--calib", tmp_path / "none.txt")


def test_an_output_that_exists_is_kept(capsys, llama, calib, tmp_path):
    out = tmp_path / "model.onnx"
    out.write_text("precious")
    arguments = ["--model", str(llama), "-o", str(out), "--calib", str(calib), "--method", "rtn"]
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert main([*arguments, "--force"]) == 0
    assert Session(tmp_path).logits(TOKENS).shape == (64, 320)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), SafetensorError("I/O error: (os error 28)")])
def test_disk_errors_become_one_line(tmp_path, error):
    with pytest.raises(UserError, match="No space left"), staged_directory(tmp_path / "out", last="x"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_staged_files_replace_all_at_once(tmp_path):
    target = tmp_path / "out"
    for content in ("old", "new"):
        with staged_directory(target, last="b") as stage:
            for name in "abc":
                (stage / name).write_text(content)
            assert not target.exists() or (target / "a").read_text() == "old"
    assert {path.read_text() for path in target.iterdir()} == {"new"}


def test_help_is_quick_to_import():
    """`--help` must not import torch: the modules are named, since a timing would not be repeatable."""
    code = "import sys; from skim_export.cli import main; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]


@pytest.mark.parametrize(("text", "size"), [("70MB", 70_000_000), ("2.5 GB", 2_500_000_000), ("1KiB", 1024), ("7", 7)])
def test_sizes(text, size):
    assert parse_size("--size", text) == size
