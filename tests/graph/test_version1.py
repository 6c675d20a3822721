"""A model of format version 1, written by the last commit that knew no other, still runs.

`version1/model.onnx` has a LutGather, a LutSwiglu and a LutMatMul with rows of all 16 classes and random weights, and
function bodies of that time; `version1/expected.npz` its ids and output, computed from dequantized weights in float64.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from skim_runtime.library import library_path

DIRECTORY = Path(__file__).parent / "version1"


@pytest.fixture(scope="module")
def expected():
    with np.load(DIRECTORY / "expected.npz") as arrays:
        return arrays["ids"], arrays["Y"]


def test_its_nodes_are_of_version_1():
    nodes = onnx.load(DIRECTORY / "model.onnx").graph.node
    assert [node.op_type for node in nodes] == ["LutGather", "LutSwiglu", "LutMatMul"]
    for node in nodes:
        values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert values["version"] == 1
        assert all(len(counts) == 16 for name, counts in values.items() if name.endswith("rows_per_class"))


@pytest.mark.parametrize("library", [True, False], ids=["operators", "functions"])
def test_it_runs_as_ever(library, expected):
    options = ort.SessionOptions()
    if library:
        options.register_custom_ops_library(str(library_path()))
    ids, wanted = expected
    (got,) = ort.InferenceSession(DIRECTORY / "model.onnx", options).run(None, {"ids": ids})
    assert np.linalg.norm(got - wanted) < 1e-5 * np.linalg.norm(wanted)
