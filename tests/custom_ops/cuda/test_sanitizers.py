"""The CUDA kernels once more, built with AddressSanitizer and UndefinedBehaviorSanitizer.

All that kernels read and write lies in heap blocks of exactly its size, shared memory too.
"""

from pathlib import Path

import pytest

from ..native import CUDA_ON_CPU, build_sanitized, run_sanitized_tests

HERE = Path(__file__).parent


@pytest.mark.slow
def test_kernels():
    build = build_sanitized(targets=CUDA_ON_CPU) / "tests/on_cpu"
    run_sanitized_tests(
        [HERE / f"test_{name}.py" for name in ("emulation", "matmul", "bfloat16", "hopper", "gather")],
        "(emulation and not race and not barrier) or ((mixed or columns or gather) and not whole)",
        SKIM_TEST_CUDA_ON_CPU=str(build),
    )
