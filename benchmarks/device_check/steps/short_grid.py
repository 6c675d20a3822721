"""A few cases that meet every kernel, to be run by a tool that makes kernels many times slower."""

from __future__ import annotations

from collections.abc import Iterator

from cuda_check import FLOATS, Case

from device_check.steps.grid import check_cases
from device_check.work import Work

__all__ = ["run", "short_grid"]

CLASSES = (0, 2, 3, 5, 7, 10, 15, 20)
INTEGERS = (0, 2, 3, 10, 15, 20)  # of rows that are multiplied as such
TOKENS = (1, 7, 16, 70)  # of the kernels for few tokens, for up to 16, for more


def short_grid() -> Iterator[Case]:
    """Odd shapes, where what is outside is nearest."""
    for dtype in FLOATS:
        for tokens in TOKENS:
            yield Case(rows=77, columns=612, classes=CLASSES, tokens=tokens, dtype=dtype, extras=tokens == TOKENS[1])
        for tokens in TOKENS[:3]:
            yield Case(rows=77, columns=612, classes=INTEGERS, tokens=tokens, dtype=dtype, integers=dtype != "float32")
        yield Case(rows=77, columns=512, classes=(2, 5), tokens=3, codebook="float16", dtype=dtype)
        yield Case(rows=77, columns=612, classes=CLASSES, tokens=9, dtype=dtype, epilogue="gather")


def run(work: Work) -> None:
    """Check them, without CUDA graphs."""
    check_cases(work, short_grid(), every=1, replay=False)
