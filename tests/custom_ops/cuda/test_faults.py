"""The tests find what they are there for: a fault is planted into a copy of the CUDA kernels, and must be noticed."""

import re
import shutil
from pathlib import Path

import pytest

from ..native import CUDA_ON_CPU, ROOT, build_native, run_tests

pytestmark = pytest.mark.slow

GPU = ROOT / "custom_ops/cuda/gpu"
INSTRUCTIONS = ("device.cuh", "warpgroup.cuh")  # what the emulation has its own of
HOPPER = ("panels.cuh", "prefill_hopper.cuh")
# The __syncwarp of product.cuh is there for the compiler only: no thread waits for what another one writes.
SYNCHRONIZATION = re.compile(
    r"(?<!if \(kCodes == 1 \|\| kRowTiles == 2\) )"
    r"(__sync\w+|WaitForCopies|CommitCopies|Fence\w+|CommitMultiplies|WaitForMultiplies|WaitAtBarrier|ArriveAtBarrier)"
    r"(<\w+>)?\([^;{]*\);"
)
FRAGMENTS = "a[k][w][r][2 + h] = halves[k][1]"


def synchronizations():
    """(file, position, length) of everything that threads wait for each other with."""
    return [
        pytest.param(
            path.name, match.start(), len(match.group()), id=f"{path.name}:{line(path, match)}:{match.group(1)}"
        )
        for path in sorted(GPU.glob("*.cuh"))
        if path.name not in INSTRUCTIONS
        for match in SYNCHRONIZATION.finditer(path.read_text())
    ]


def line(path, match):
    return path.read_text().count("\n", 0, match.start()) + 1


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the native sources."""
    root = tmp_path_factory.mktemp("faults")
    shutil.copytree(ROOT / "custom_ops", root / "custom_ops")
    return root


@pytest.fixture
def tests_pass(copy):
    """A function: file, new text -> whether the tests pass with it."""
    changed = []

    def run(name, text):
        path = copy / "custom_ops/cuda/gpu" / name
        changed.append((path, path.read_text()))
        path.write_text(text)
        build = build_native("faults", ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1"], CUDA_ON_CPU, root=copy)
        tests = ["test_matmul.py", "test_integers.py"]
        some = "test_columns or test_mixed_classes or test_no_tokens or (test_integers and test_tokens)"
        if name in HOPPER:
            tests, some = ["test_hopper.py"], "not everything"
        done = run_tests(
            [Path(__file__).parent / test for test in tests], some, SKIM_TEST_CUDA_ON_CPU=str(build / "tests/on_cpu")
        )
        # 1: a test failed; negative: the emulation aborted.
        assert done.returncode in (0, 1, -6), done.stdout + done.stderr
        return done.returncode == 0

    yield run
    for path, text in changed:
        path.write_text(text)


@pytest.mark.parametrize("name", ["decode.cuh", "prefill_hopper.cuh"])
def test_no_fault(tests_pass, name):
    assert tests_pass(name, (GPU / name).read_text())


@pytest.mark.parametrize(("name", "start", "length"), synchronizations())
def test_synchronization(tests_pass, name, start, length):
    text = (GPU / name).read_text()
    assert not tests_pass(name, text[:start] + ";" + text[start + length :])


def test_fragments(tests_pass):
    text = (GPU / "product.cuh").read_text()
    assert FRAGMENTS in text
    assert not tests_pass("product.cuh", text.replace(FRAGMENTS, FRAGMENTS.replace("[1]", "[0]")))
