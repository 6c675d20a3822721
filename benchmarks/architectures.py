"""What is tested of every architecture: found in the tests themselves.

A test that goes over architectures takes the name of a case (tests/tiny_decoders.py) as its parameter `name`, and says
by a mark what it shows of each, such as `@pytest.mark.covers("genai")`. Tests that are skipped show nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from skim_runtime.errors import UserError
from skim_runtime.measure.report import check_json, report_head, save_json
from skim_runtime.measure.tables import say, text_table

__all__ = ["KINDS", "Case", "add_arguments", "found_in", "lines", "run"]

TESTS = Path(__file__).resolve().parents[1] / "tests"
MARK, NAME = "covers", "name"

# What a mark may name, and the heading of its column.
KINDS = {
    "onnx": "ONNX, CPU",
    "genai": "onnxruntime-genai",
    "function": "stock ONNX Runtime",
    "weights": "from weights only",
    "calibrated": "calibrated",
    "bundle": "bundle",
    "cuda": "CUDA, emulated",
    "gguf": "from GGUF",
}
ALWAYS, SLOW = "yes", "slow"


@dataclass(frozen=True)
class Case:
    """What is tested of one case.

    Attributes:
        name: of the case, as tests have it.
        kinds: by what is tested, whether the tests always run or are among the slow ones.
    """

    name: str
    kinds: dict[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--tests", type=Path, default=TESTS, metavar="DIR", help="where tests are looked for")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table to this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Collect the tests, print the table and write it."""
    check_json(args.json)
    cases = found_in(_collected(args.tests))
    say(text_table(("case", *KINDS.values()), lines(cases)))
    save_json(args.json, {**report_head(), "cases": [asdict(case) for case in cases]})


def lines(cases: Iterable[Case]) -> list[list[str]]:
    """Lines of the table: the name of a case, and a cell for each of `KINDS`."""
    return [[case.name, *(case.kinds.get(kind, "") for kind in KINDS)] for case in cases]


def found_in(items: Iterable[pytest.Item]) -> list[Case]:
    """What collected tests show, cases in the order in which tests name them.

    Raises:
        UserError: a mark names something else than `KINDS`, or its test has no case.
    """
    found: dict[str, dict[str, str]] = {}
    for item in items:
        kinds = [kind for mark in item.iter_markers(MARK) for kind in mark.args]
        if not kinds or item.get_closest_marker("skip"):
            continue
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise UserError(f"{item.nodeid}: {MARK} {unknown[0]!r}: must be one of {', '.join(KINDS)}")
        parameters = getattr(item, "callspec", None)
        if parameters is None or NAME not in parameters.params:
            raise UserError(f"{item.nodeid}: has the mark {MARK}, but no parameter {NAME} for the architecture")
        cells = found.setdefault(parameters.params[NAME], {})
        for kind in kinds:
            if cells.get(kind) != ALWAYS:
                cells[kind] = SLOW if item.get_closest_marker("slow") else ALWAYS
    return [Case(name, cells) for name, cells in found.items()]


class _Collector:
    """A plugin of pytest that keeps what was collected."""

    items: list[pytest.Item]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = session.items


def _collected(tests: Path) -> list[pytest.Item]:
    collector, printed = _Collector(), io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = pytest.main(
            ["--collect-only", "-qq", f"--rootdir={TESTS.parent}", f"-c{TESTS.parent / 'pyproject.toml'}", str(tests)],
            plugins=[collector],
        )
    if code != pytest.ExitCode.OK:
        said = printed.getvalue().strip().splitlines() or [f"exit code {code}"]
        raise UserError(f"--tests {tests}: pytest cannot collect them: {said[-1]}")
    return collector.items
