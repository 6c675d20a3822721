"""Fixtures that several test packages share."""

import os
from pathlib import Path

import pytest

from skim_export.checkpoint import resolve

# Processes that tests start must find the installed packages, not the sources in the working directory.
os.environ["PYTHONSAFEPATH"] = "1"
# TVM's pool of threads belongs to the process and never grows: whoever uses it first must leave enough for all tests.
os.environ["TVM_NUM_THREADS"] = "2"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Directory of the embedded default model; the first run downloads it (93 MB), later ones find it in the cache."""
    return resolve("smollm2-135m")
