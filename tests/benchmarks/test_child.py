"""A row's process."""

import os
from pathlib import Path

import numpy as np
import pytest

from skim_export.measure.child import in_child, peak_megabytes
from skim_runtime.progress_bar import ProgressBar


def test_a_child_gets_a_progress_and_gives_a_result():
    assert in_child(isinstance, ProgressBar)


def test_errors_of_a_child_arrive():
    with pytest.raises(AttributeError, match="nothing"):
        in_child(getattr, "nothing")


def test_peak_outlives_what_was_freed():
    block = np.ones(30_000_000)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    assert resident > block.nbytes / 1e6
    del block
    assert resident * 0.99 < peak_megabytes() < resident + 4000
