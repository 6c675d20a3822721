"""CUDA kernels through nvcc. Whether they are right is tested without it; no GPU is needed here."""

import logging
import subprocess

import pytest

from skim_runtime.errors import UserError

from .products import AFFINE, TABLES, WINDOWS

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120")


def spilled(report):
    """Bytes of registers that each kernel spills, of ptxas's report."""
    return [int(line.split(" bytes spill stores")[0].split()[-1]) for line in report.splitlines() if "spill st" in line]


def check_registers(nvcc, source, architecture):
    """Ptxas still spills a few bytes of one kernel or another, outside of its loops."""
    from skim_export.bundle.gpu.nvcc import CUBIN_OPTIONS

    options = [*CUBIN_OPTIONS, f"-arch={architecture}", "-Xptxas", "-v", "-o", source.with_suffix(".cubin")]
    done = subprocess.run([nvcc, *options, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]
    assert max(spilled(done.stderr)) <= 16, architecture


def test_compiles_and_keeps_to_registers(nvcc, bundle):
    names = ("table3_int8", "affine8", "window3_1_int8")
    classes = [c for c in TABLES + AFFINE + WINDOWS if c.name in names]
    check_registers(nvcc, bundle("cuda", classes) / "kernels.cu", ARCHITECTURES[0])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_class_keeps_to_registers(nvcc, bundle, architecture):
    check_registers(nvcc, bundle("cuda", TABLES + AFFINE + WINDOWS) / "kernels.cu", architecture)


def test_cubins_lie_beside_the_source(nvcc, tmp_path):
    from skim_export.bundle.gpu.nvcc import compile_cubins

    source = tmp_path / "kernels.cu"
    source.write_text("__global__ void nothing() {}\n")
    assert compile_cubins(source, ["sm_75", "sm_90"]) == {
        "sm_75": "kernels.sm_75.cubin",
        "sm_90": "kernels.sm_90.cubin",
    }
    assert (tmp_path / "kernels.sm_75.cubin").read_bytes()[:4] == b"\x7fELF"


def test_refused_source(nvcc, tmp_path):
    from skim_export.bundle.gpu.nvcc import compile_cubins

    source = tmp_path / "kernels.cu"
    source.write_text("nonsense\n")
    with pytest.raises(UserError, match=r"nvcc cannot compile kernels.cu for sm_75: .*error"):
        compile_cubins(source, ["sm_75"])


def test_without_nvcc(monkeypatch, tmp_path, caplog):
    """The bundle is written all the same, and says what is missing."""
    from dataclasses import replace

    from skim_export.bundle.gpu.kernel_list import load_kernel_list
    from skim_export.bundle.gpu.target import load_gpu_target
    from skim_export.bundle.gpu.write import write_kernels

    monkeypatch.setenv("PATH", str(tmp_path))
    target = replace(load_gpu_target("cuda"), architectures=("sm_75",))
    with caplog.at_level(logging.WARNING):
        write_kernels(tmp_path, target, [TABLES[2]], [])
    assert "nvcc" in caplog.text
    kernels = load_kernel_list(tmp_path)
    assert kernels.binaries == {}
    assert "nvcc" in kernels.notes[0]
