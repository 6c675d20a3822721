from functools import cache

import pytest

from .models import export_tiny
from .native import SANITIZERS, bundle, compile_runtime, link_program


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Exports one of `MODELS` by name, once."""
    return cache(lambda name: export_tiny(name, tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """Writes the bundle of a model's directory, once."""
    return cache(lambda model: bundle(model, tmp_path_factory.mktemp("bundles") / "bundle"))


@pytest.fixture(scope="session")
def logits_program(tmp_path_factory):
    """Links the program of logits.c for a bundle, with some sanitizers."""
    runtime = cache(lambda sanitizers: compile_runtime(tmp_path_factory.mktemp(sanitizers), SANITIZERS[sanitizers]))

    def get(directory, sanitizers="none"):
        program = directory / f"logits_{sanitizers}"
        return link_program(directory, runtime(sanitizers), program, SANITIZERS[sanitizers])

    return get
