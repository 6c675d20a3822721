"""The operator that measures how fast memory is read: its checksum shows that all of it was."""

import numpy as np
import pytest

from skim_runtime.measure.bandwidth import WAYS, reading_model
from skim_runtime.measure.session import open_session

from .models import LIBRARY

TASK = 256 * 1024  # bytes that a thread reads at once


def checksum(data):
    """The sum of 64-bit words, the last filled up with zeros."""
    words = np.zeros(-(-data.size // 8), np.uint64)
    words.view(np.uint8)[: data.size] = data
    return words.sum(dtype=np.uint64).astype(np.int64)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("streams", "ahead"), [*WAYS, (1, 64)])
def test_all_is_read(streams, ahead, threads):
    session = open_session(reading_model(streams, ahead), threads, LIBRARY)
    for size in (0, 1, 7, 8, 9, 63, 64, 65, 511, 1000, TASK - 1, TASK, TASK + 1, 3 * TASK + 777):
        data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
        (got,) = session.run(None, {"data": data})
        assert got.dtype == np.int64
        assert got.tolist() == [checksum(data)]


def test_memory_may_begin_anywhere():
    session = open_session(reading_model(4, 0), 1, LIBRARY)
    data = np.random.default_rng(0).integers(0, 256, 5000, np.uint8)
    for start in range(1, 9):
        binding = session.io_binding()
        part = data[start : 4000 + start]
        binding.bind_input("data", "cpu", 0, np.uint8, part.shape, part.ctypes.data)
        binding.bind_output("sum")
        session.run_with_iobinding(binding)
        assert binding.copy_outputs_to_cpu()[0].tolist() == [checksum(part)]


def test_other_numbers_of_streams_are_refused():
    with pytest.raises(Exception, match=r"ReadMemory.*streams must be 1, 2 or 4, got 3"):
        open_session(reading_model(3, 0), 1, LIBRARY)
