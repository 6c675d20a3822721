"""The benchmark of the CUDA kernels, on a stand-in for a GPU: the kernels run on the CPU (custom_ops/tests/on_cpu)."""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import cuda_benchmark
import numpy as np
import pytest
import torch
from cuda_build import Nvcc
from cuda_check import EPILOGUES, Case, cases, check
from cuda_contenders import Dense, NBits, Packed, copies_of, why_no_nbits
from cuda_device import Kernels, Layer
from cuda_library import CudaLibrary
from cuda_speed import read_bandwidth, take_turns
from cuda_stand_in import StandIn, is_quick

from skim_export.measure.random_linear import random_linear
from skim_runtime.errors import UserError
from skim_runtime.measure.tables import markdown_table, write_markdown

from ..custom_ops.native import ROOT, build_cuda_on_cpu
from ..tools import require
from .command import BENCHMARKS, refusal

DEVICE = StandIn()


@pytest.fixture(scope="module")
def kernels():
    """The kernels on the CPU."""
    return Kernels(CudaLibrary(build_cuda_on_cpu() / "libskim_cuda_on_cpu.so"), DEVICE)


def test_the_grid(kernels):
    """A few of its cases: all of them run in tests/custom_ops/cuda, in another form."""
    some = [case for case in cases() if is_quick(case)][::7]
    assert {case.epilogue for case in some} == {*EPILOGUES, "gather"}
    assert {case.dtype for case in some} == {"float16", "bfloat16", "float32"}
    for case in some:
        assert check(case, kernels, DEVICE).complaint is None, case


def test_the_grid_has_everything():
    grid = list(cases())
    assert len(set(grid)) == len(grid)
    for dtype in ("float16", "bfloat16", "float32"):
        of_type = [case for case in grid if case.dtype == dtype and case.epilogue != "gather"]
        assert {case.tokens for case in of_type} >= {*range(18), 64, 128}
        alone = {(case.codebook, *case.classes) for case in of_type if len(case.classes) == 1}
        assert alone == {("int8", c) for c in range(22)} | {("float16", c) for c in (*range(8), *range(16, 22))}


class Faulty:
    """Kernels whose launches are followed by a fault."""

    def __init__(self, fault):
        self._fault, self._launches = fault, 0

    def matmul(self, layer, x, y, epilogue="store"):
        rows, columns = layer.shape
        weight = random_linear(np.random.default_rng(0), rows, columns, {2: 1.0}).dequantize()
        y.copy_(x.float() @ torch.from_numpy(weight).T)
        self._launches += 1
        self._fault(y, self._launches)


def nudge(element):
    """Another number in its last bit."""
    element.view(torch.int16).add_(1)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (lambda y, launch: None, None),
        (lambda y, launch: y[0].mul_(1.01), "off by "),
        (lambda y, launch: y[1, 3].fill_(torch.nan), "off by nan"),
        (lambda y, launch: y.as_strided((1,), (1,), y.storage_offset() - 1).fill_(0), "writes outside of its output"),
        (lambda y, launch: y.as_strided((1,), (1,), y.storage_offset() + y.numel()).fill_(0), "writes outside"),
        (lambda y, launch: launch == 2 and nudge(y[0, 0]), "the second launch gives other bits"),
        (lambda y, launch: launch == 4 and nudge(y[0, 0]), "a captured graph gives other bits"),
    ],
)
def test_what_is_wrong_is_found(fault, complaint):
    case = Case(rows=20, columns=64, classes=(2,), tokens=2)
    found = check(case, Faulty(fault), DEVICE).complaint
    assert found == complaint or found.startswith(complaint)


def test_wrong_kernels_are_not_timed(monkeypatch, capsys):
    wrong = Case(rows=20, columns=64, classes=(2,), tokens=2)
    monkeypatch.setattr(cuda_benchmark, "cases", lambda: [wrong, replace(wrong, tokens=3)])
    with pytest.raises(SystemExit) as ended:
        cuda_benchmark.check_all(Faulty(lambda y, _: y.zero_()), DEVICE)
    assert ended.value.code == 1
    lines = capsys.readouterr().out.split("\n\n")[:-1]
    assert "tokens=2" in lines[0]
    assert "off by 1.00e+00" in lines[0]
    assert lines[-2:] == ["a processor, float16: 2 cases, largest relative error 1.0e+00", "2 cases are wrong"]


def test_turing_has_no_cases_of_bfloat16(kernels, monkeypatch, capsys):
    case = Case(rows=20, columns=64, classes=(2,), tokens=2)
    monkeypatch.setattr(cuda_benchmark, "cases", lambda: [case, replace(case, dtype="bfloat16")])
    monkeypatch.setattr(StandIn, "has_bfloat16", False)
    cuda_benchmark.check_all(kernels, DEVICE)
    (line,) = capsys.readouterr().out.split("\n\n")[:-1]
    assert line.startswith("a processor, float16: 1 cases")


def test_the_tables(kernels, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cuda_benchmark, "CONTENDER_SECONDS", 0)
    shapes = {"96x64": (96, 64)}
    cuda_benchmark.measure(shapes, [1, 2, 1], 2, kernels, DEVICE, tmp_path / "a.json", tmp_path / "a.md")
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["device"] == {"name": "a processor"}
    names = [*cuda_benchmark.WIDTHS]
    names.insert(1, "cuBLAS float16")
    names.append("MatMulNBits 4 bits")
    assert [(row["tokens"], row["contender"]) for row in report["rows"]] == [
        (m, name) for m in (1, 2) for name in names
    ]
    for row in report["rows"]:
        assert row["shape"] == "96x64"
        assert row["error"] < (5e-3 if row["contender"] == NBits.name else 1e-3)
        assert 0 < row["fastest"] <= row["microseconds"]
        assert row["copies"] * row["nbytes"] > 3 * DEVICE.cache_bytes
        assert row["gigabytes_per_second"] == pytest.approx(row["nbytes"] / row["microseconds"] / 1e3)
        assert row["teraflops"] == pytest.approx(2 * row["tokens"] * 96 * 64 / row["microseconds"] / 1e6)
        share = 1e9 * row["gigabytes_per_second"] / report["bandwidth"]["bytes_per_second"]
        assert row["bandwidth_share"] == pytest.approx(share)
    by_width = {row["contender"]: row["nbytes"] for row in report["rows"]}
    assert by_width["3 bits"] == 96 * (64 * 3 // 8 + 8 + 2)
    assert by_width["cuBLAS float16"] == 96 * 64 * 2
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "a.md").read_text().strip()
    assert "| MatMulNBits 4 bits " in printed
    assert "| 2, 3 and 4 bits " in printed


@pytest.mark.parametrize(("code", "error"), [(35, UserError), (1, RuntimeError)])
def test_launches_that_fail(code, error):
    class Failing:
        def matmul(self, *arguments):
            return code

    layer = Layer(random_linear(np.random.default_rng(0), 4, 32, {1: 1.0}), DEVICE)
    with pytest.raises(error, match=f"CUDA error {code}"):
        Kernels(Failing(), DEVICE).matmul(layer, torch.zeros(1, 32), torch.zeros(1, 4))


def test_copies_are_colder_than_the_cache():
    assert [copies_of(nbytes, DEVICE) for nbytes in (16 << 10, 24 << 10, 48 << 10, 49 << 10)] == [4, 3, 2, 2]


def test_copies_have_addresses_of_their_own(kernels):
    contender = Packed("2 bits", random_linear(np.random.default_rng(0), 32, 64, {1: 1.0}), kernels, DEVICE)
    addresses = {layer.fields.codes[1] for layer in contender._layers}
    assert len(addresses) == contender.copies > 1


def test_the_other_contenders():
    dense = Dense(torch.randn(96, 64), DEVICE)
    nbits = NBits(96, 64, DEVICE)
    assert why_no_nbits(DEVICE.provider) is None
    assert nbits.nbytes == 96 * (64 // 2 + 64 // 32 * 2)
    rows = take_turns([dense, nbits], (96, 64), 2, DEVICE, read_bandwidth(DEVICE), rounds=1, seconds=0)
    assert [row.launched_microseconds is None for row in rows] == [False, True]
    assert all(row.error < 5e-3 for row in rows)
    device = StandIn()
    device.provider = "CUDAExecutionProvider"
    assert why_no_nbits(device.provider) == "onnxruntime has no CUDAExecutionProvider"
    with pytest.raises(RuntimeError, match="onnxruntime could not load CUDAExecutionProvider"):
        NBits(96, 64, device).call(1)


@pytest.mark.parametrize(
    ("missing", "reason"), [("onnxruntime", "onnxruntime is not installed"), ("onnx", "onnx is not installed")]
)
def test_why_there_is_no_nbits(monkeypatch, missing, reason):
    monkeypatch.setattr("cuda_contenders.find_spec", lambda name: None if name == missing else object())
    assert why_no_nbits(DEVICE.provider) == reason


def arguments(*values):
    parser = argparse.ArgumentParser()
    cuda_benchmark.add_arguments(parser)
    return parser.parse_args([str(value) for value in values])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", 0], "--rounds 0: must be at least 1"),
        (["--tokens", 0], "--tokens 0: must be at least 1"),
        (["--shapes", "64x100"], "--shapes 64x100: columns must be a multiple of 32"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(UserError, match=message):
        cuda_benchmark.run(arguments(*options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    assert refusal("cuda").startswith(f"benchmarks cuda: error: no GPU: torch {torch.__version__} (built ")


def test_without_nvcc(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="nvcc is missing: install the CUDA toolkit"):
        Nvcc()


def test_markdown_that_cannot_be_written(tmp_path):
    write_markdown(None, [])
    with pytest.raises(UserError, match=r"--markdown .*: cannot be written"):
        write_markdown(tmp_path / "missing" / "a.md", [])


def test_a_broken_kernel_is_a_refusal(monkeypatch, tmp_path):
    require("nvcc")
    monkeypatch.setattr("cuda_build.CUDA_BUILD", tmp_path)
    source = tmp_path / "kernel.cu"
    source.write_text("__global__ void nothing() {}")
    cubin = Nvcc().cubin(source, "sm_80")
    assert Nvcc().cubin(source, "sm_80") == cubin
    assert cubin.with_suffix(".txt").exists()
    source.write_text("nonsense")
    with pytest.raises(UserError, match=r"nvcc cannot make kernel.sm_80.cubin: .*error"):
        Nvcc().cubin(source, "sm_80")


def test_needs_only_torch_and_numpy(tmp_path):
    """With a site directory that has nothing of this project, nor most of what it depends on."""
    absent = ("skim", "onnx", "rich", "safetensors", "transformers", "tokenizers", "gguf", "huggingface", "tvm")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith((*absent, "_", "__editable__")) and entry.suffix != ".pth":
            (tmp_path / entry.name).symlink_to(entry)
    for name, reason in (
        ("cuda", "--rounds 0: must be at least 1"),
        ("kernels", "onnx is missing: this benchmark needs it"),
    ):
        done = subprocess.run(
            [sys.executable, "-S", str(BENCHMARKS), name, "--rounds", "0"],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "runtime")))},
        )
        assert (done.returncode, done.stderr) == (2, f"benchmarks {name}: error: {reason}\n")


def test_a_table():
    assert markdown_table(("a", "bcde"), [("x", "1"), ("yyyy", "22")]) == (
        "| a    | bcde |\n| ---- | ---: |\n| x    |    1 |\n| yyyy |   22 |"
    )
