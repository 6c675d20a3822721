"""The kernels and the operators once more, built with sanitizers: of addresses, undefined behaviour and threads."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from skim_runtime.library import kernel_name

from ..random_packed import random_packed
from ..tools import require
from .models import gather_model, matmul_model
from .native import build_sanitized, run_sanitized_tests, sanitizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def build():
    return build_sanitized()


def test_kernels_on_exact_blocks(build):
    """Tensors in heap blocks of exactly their size: any access outside of them ends the program."""
    done = subprocess.run([str(build / "skim_kernel_test")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "876 cases, 0 failures" in done.stdout


def test_operators(build):
    names = ("matmul", "swiglu", "moe", "gather", "refusals", "read_memory")
    modules = [Path(__file__).parent / f"test_{name}.py" for name in names]
    # The reference kernels have had their turn in test_kernels_on_exact_blocks.
    selection = "" if kernel_name() == "reference" else "not reference"
    run_sanitized_tests(modules, selection, SKIM_TEST_LIBRARY=str(build / "libskim_ops.so"))


# Threads of the program, which call sessions at once; sessions have one thread of their own, or more.
IN_THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import onnxruntime as ort

library, sessions, threads, *models = sys.argv[1:]

def opened(model):
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.register_custom_ops_library(library)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

many = [[opened(model) for model in models] for _ in range(int(sessions))]

def use(number):
    for _ in range(20):
        for session in many[number % len(many)]:
            (value,) = session.get_inputs()
            x = np.arange(9) if value.name == "ids" else np.ones((9, 300), np.float32)
            session.run(None, {value.name: x})

with ThreadPoolExecutor(8) as pool:
    list(pool.map(use, range(8)))
print("done")
"""


@pytest.mark.parametrize(("sessions", "threads", "found"), [(1, 1, False), (8, 1, False), (8, 3, True)])
def test_threads(tmp_path, sessions, threads, found):
    """Eight threads on one session and on eight, under ThreadSanitizer: it finds nothing in our library.

    It does where onnxruntime's own threads share the work, which meet by means that it does not see: so it is at work.
    """
    require("setarch")
    library = build_sanitized(["thread"], targets=["skim_ops"]) / "libskim_ops.so"
    packed = random_packed(np.random.default_rng(0), 200, 300, [1, 3, 8, 15], column_scale=True, bias=True)
    models = {
        "exact": matmul_model(packed),
        "integer": matmul_model(packed, accuracy_level=4),
        "gather": gather_model(packed),
    }
    files = [tmp_path / f"{name}.onnx" for name in models]
    for file, model in zip(files, models.values(), strict=True):
        onnx.save(model, file)
    suppressions = tmp_path / "suppressions"
    suppressions.write_text("race:dl_deallocate_tls\n")  # the linker's own, when a thread has ended
    options = {"LD_PRELOAD": sanitizer("thread"), "TSAN_OPTIONS": f"suppressions={suppressions}"}
    program = [sys.executable, "-c", IN_THREADS, library, sessions, threads, *files]
    done = subprocess.run(
        ["setarch", "-R", *map(str, program)],
        capture_output=True,
        text=True,
        env=os.environ | options | {"OMP_NUM_THREADS": "1"},
    )
    assert done.stdout == "done\n", done.stderr[-4000:]
    reports = done.stderr.split("WARNING: ThreadSanitizer:")[1:]
    ours = [report for report in reports if "libskim_ops.so" in report or "custom_ops/" in report]
    assert bool(ours) == found, done.stderr[-8000:]
