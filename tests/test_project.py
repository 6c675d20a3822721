"""What the files at the root say of the project."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_FILES = {
    "architecture": 1,
    "operator attribute": 6,
    "input format": 2,
    "quantization method": 1,
    "instruction set": 4,
    "device": 1,
}


def version(pyproject):
    return tomllib.loads((ROOT / pyproject).read_text("utf-8"))["project"]["version"]


def test_both_packages_have_the_version_of_the_changelog():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert version("pyproject.toml") == version("runtime/pyproject.toml") == newest[1]


@pytest.mark.parametrize("extension", MOST_FILES)
def test_an_extension_touches_few_files(extension):
    """The table in CONTRIBUTING.md names as many files as it says, and they are there."""
    (row,) = re.findall(rf"^\| {extension} \| (\d+) \| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M)
    number, where = row
    files = re.findall(r"`([^`]+/[^`]+)`( \(new\))?", where)
    assert len(files) == int(number) <= MOST_FILES[extension]
    for name, new in files:
        path = ROOT / name
        assert (path.parent.is_dir() and "NAME" in name) if new else path.is_file(), name
