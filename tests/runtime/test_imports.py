"""The runtime needs what its distribution declares, and nothing else: neither torch nor onnx nor skim_export."""

import ast
import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

import skim_runtime

PACKAGE = Path(skim_runtime.__file__).parent
MODULES = {"protobuf": "google"}  # where a distribution's module has another name


def declared():
    """Modules of the distributions that runtime/pyproject.toml asks for, some of them only as an extra."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    needed = chain(project["dependencies"], *project["optional-dependencies"].values())
    names = [re.match(r"[\w-]+", requirement).group() for requirement in needed]
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def imported(file):
    """Top-level names of all modules that a file imports anywhere."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield node.module.partition(".")[0]


def test_only_declared_dependencies_are_imported():
    allowed = declared() | set(sys.stdlib_module_names) | {"skim_runtime"}
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 20
    undeclared = {(file.name, name) for file in files for name in imported(file) if name not in allowed}
    assert undeclared == set()
