"""What benchmarks of speed share."""

import json

import numpy as np
import pytest

from skim_export.measure import speed
from skim_runtime.errors import UserError


def test_shapes():
    assert speed.parse_shape("14336x4096") == (14336, 4096)
    for shape in ("4096", "0x4096", "4096x", "4096x-1", "axb", "4096X4096"):
        with pytest.raises(UserError, match=f"--shapes {shape}: must be rows and columns"):
            speed.parse_shape(shape)
    assert speed.parse_shape("3x96", 32) == (3, 96)
    with pytest.raises(UserError, match="--shapes 3x100: columns must be a multiple of 32"):
        speed.parse_shape("3x100", 32)


def test_least_values():
    speed.at_least("--rounds", 1, 1, 2)
    with pytest.raises(UserError, match="--rounds 0: must be at least 1"):
        speed.at_least("--rounds", 1, 2, 0)


@pytest.mark.parametrize("threads", [1, 2])
def test_bandwidth_is_that_of_a_reading(threads, monkeypatch):
    sizes = []
    reading = speed._memchr()
    monkeypatch.setattr(speed, "_memchr", lambda: lambda part: (sizes.append(part.nbytes), reading(part)))
    bandwidth, way = speed.read_bandwidth(threads, 1 << 20)
    assert set(sizes) == {(1 << 20) // threads}
    assert way in ("memchr", "numpy.max", "numpy.sum")
    assert 1e7 < bandwidth < 1e13


def test_the_search_reads_to_the_end():
    part = np.zeros(100, np.uint8)
    assert speed._memchr()(part) is None
    part[99] = 1
    assert speed._memchr()(part) == part.ctypes.data + 99


def test_machine():
    facts = json.loads(json.dumps(speed.machine()))
    assert facts["cores"] >= 1
    assert facts["processor"]
    assert 1 << 10 < facts["last_level_cache"] < 1 << 40
    assert "onnxruntime" in facts["versions"]


def test_json_that_cannot_be_written(tmp_path):
    speed.save_json(None, {})
    speed.save_json(tmp_path / "a.json", {"rows": []})
    assert json.loads((tmp_path / "a.json").read_text()) == {"rows": []}
    with pytest.raises(UserError, match=r"--json .*b.json: cannot be written"):
        speed.save_json(tmp_path / "missing" / "b.json", {})
