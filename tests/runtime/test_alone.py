"""The runtime's distribution by itself, in an environment of its own: it runs models, and is small."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from skim_runtime import Session, Tokenizer, generate

ROOT = Path(__file__).parents[2]
MOST_MEGABYTES = 150
# What tokenizers brings to fetch files from a hub: nothing of it is used here, and a board can do without.
FOR_HUBS = ("huggingface_hub", "hf-xet", "fsspec", "filelock", "PyYAML", "tqdm")


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A fresh environment into which `pip install ./runtime` put what it wants."""
    path = tmp_path_factory.mktemp("alone") / "environment"
    venv.create(path, symlinks=True)
    pip(path, "install", "--no-compile", "--constraint", ROOT / "constraints.txt", ROOT / "runtime")
    return path


def pip(environment, *arguments):
    command = [sys.executable, "-m", "pip", "--quiet", "--python", str(environment / "bin" / "python"), *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def megabytes(environment) -> float:
    (packages,) = environment.glob("lib/python*/site-packages")
    files = [path for path in packages.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return sum(path.stat().st_size for path in files) / 1e6


def test_it_runs_a_model_and_torch_is_not_there(environment, packed, tmp_path, capsys):
    model = shutil.copytree(packed, tmp_path / "model")
    (model / "libskim_ops.so").unlink()  # so the installed one is used
    expected = Tokenizer(model).decode(
        generate(Session(model), Tokenizer(model).prompt("hello"), max_new_tokens=8).tokens
    )
    for packages in ((), FOR_HUBS):
        if packages:
            pip(environment, "uninstall", "--yes", *packages)
        run = [environment / "bin" / "skim-run", model, "hello", "--max-new-tokens", "8"]
        done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == expected + "\n"
        (line,) = done.stderr.splitlines()
        assert line.startswith("kernel: ")
        assert "function fallback" not in line
        without = f"without {', '.join(packages)}" if packages else "as pip installs it"
        with capsys.disabled():
            print(f"\nsite-packages {without}: {megabytes(environment):.0f} MB")  # noqa: T201
    assert megabytes(environment) < MOST_MEGABYTES
    for package in ("torch", "transformers", "onnx", "skim_export"):
        found = subprocess.run(
            [environment / "bin" / "python", "-c", f"import {package}"], capture_output=True, text=True, cwd=tmp_path
        )
        assert f"No module named '{package}'" in found.stderr


def test_what_needs_the_exporter_says_so(environment, packed, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a text to measure on")
    done = subprocess.run(
        [environment / "bin" / "skim-eval", packed, "--text", text, "--context", "64", "--reference", "smollm2-135m"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.strip().endswith("needs the package skim-export, which is not installed")
    assert len(done.stderr.splitlines()) == 1
