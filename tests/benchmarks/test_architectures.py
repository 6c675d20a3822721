"""The table of what is tested of every architecture follows from the tests."""

import json

import tables
from architectures import found_in

from .command import measured, refusal

TESTS = """
import pytest

ALL = pytest.mark.parametrize("name", ["a", "b"])

@ALL
@pytest.mark.parametrize("kind", [pytest.param(1, marks=pytest.mark.covers("genai")), 2])
def test_some(name, kind): ...

@ALL
@pytest.mark.slow
@pytest.mark.covers("genai", "gguf")
def test_slow(name): ...

@pytest.mark.skip
@ALL
@pytest.mark.covers("cuda")
def test_skipped(name): ...

@pytest.mark.parametrize("name", ["c"])
@pytest.mark.covers("onnx")
def test_other(name): ...
"""


def test_cells_are_what_tests_say(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    report, out = measured(tmp_path / "found.json", "architectures", "--tests", tmp_path)
    both = {"genai": "yes", "gguf": "slow"}
    assert report["cases"] == [
        {"name": "a", "kinds": both},
        {"name": "b", "kinds": both},
        {"name": "c", "kinds": {"onnx": "yes"}},
    ]
    text, _, _ = tables.TABLES["architectures"]([report]).partition("\n\n")
    heading, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert (heading[1], heading[2], heading[-1]) == ("ONNX, CPU", "onnxruntime-genai", "from GGUF")
    assert lines == [["a", "", "yes", *[""] * 5, "slow"], ["b", "", "yes", *[""] * 5, "slow"], ["c", "yes", *[""] * 7]]
    assert [line.split() for line in out.splitlines() if line.startswith("a ")] == [["a", "yes", "slow"]]


def test_what_is_wrong_is_said(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text(TESTS.replace('"onnx"', '"onyx"'))
    assert "test_other[c]: covers 'onyx': must be one of onnx, genai, " in refusal("architectures", "--tests", tmp_path)
    file.write_text(TESTS.replace('"name", ["c"]', '"case", ["c"]').replace("test_other(name)", "test_other(case)"))
    assert "test_other[c]: has the mark covers, but no parameter name" in refusal("architectures", "--tests", tmp_path)
    file.write_text("import no_such_package")
    assert f"--tests {tmp_path}: pytest cannot collect them: " in refusal("architectures", "--tests", tmp_path)


def test_the_page_has_all_that_was_collected_here(request):
    """As many tests as this run has; `python benchmarks architectures --json FILE` writes the page's file anew."""
    file = tables.ROOT / "docs" / "results" / "architectures.json"
    recorded = {case["name"]: case["kinds"].keys() for case in json.loads(file.read_text())["cases"]}
    for case in found_in(request.session.items):
        assert case.kinds.keys() <= recorded[case.name]
