"""The operators' schema: what is written is read back, whatever the type of the node, and what is wrong is refused."""

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from skim_export.graph.reader import load, packed_node, read_packed
from skim_runtime import Session, UserError
from skim_runtime.onnx_file import OnnxGraph
from skim_runtime.operators import DOMAIN, LUT_GATHER, LUT_MATMUL, LUT_MOE, LUT_SWIGLU, OPERATORS, TENSORS, parse_proto
from skim_runtime.operators.node import MAX_INTEGER_COLUMNS

from ..random_packed import random_packed

RNG = np.random.default_rng(0)


def node_on(operator, linears, **own):
    """A node on packed linears by name, and its initializers."""
    attributes = operator.node_attributes(list(linears.values()), **own)
    inputs = operator.node_inputs(["value", "ids", "floats"][: len(operator.first_inputs)], list(linears))
    node = helper.make_node(operator.name, inputs, ["Y"], "the node", domain=DOMAIN, **attributes)
    arrays = {f"{name}.{tensor}": getattr(p, tensor) for name, p in linears.items() for tensor in TENSORS}
    return node, arrays


def facts(node):
    """What all adapters must agree on."""
    return [
        (
            w.name,
            w.out_features,
            w.in_features,
            w.rows_per_class,
            w.sources,
            w.integer,
            [t.size for t in w.tensors.values()],
        )
        for w in node.operands
    ]


NODES = {
    "product": (LUT_MATMUL, ["a.proj"], {"accuracy_level": 4}, True),
    "exact product": (LUT_MATMUL, ["a.proj"], {}, False),
    "gated": (LUT_SWIGLU, ["mlp.gate_proj", "mlp.up_proj"], {"accuracy_level": 4}, True),
    "embedding": (LUT_GATHER, ["embed"], {"dtype": 10}, False),
}


@pytest.mark.parametrize(("operator", "names", "own", "integer"), NODES.values(), ids=NODES)
def test_all_adapters_read_what_is_written(tmp_path, operator, names, own, integer):
    linears = {name: random_packed(RNG, 24, 64, [1, 2, 12], column_scale=True) for name in names}
    proto, arrays = node_on(operator, linears, **own)
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    value, y = (helper.make_tensor_value_info(name, 1, None) for name in ("value", "Y"))
    graph = helper.make_graph([proto], "one", [value], [y], tensors)
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid(DOMAIN, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "model.onnx")
    read = OnnxGraph.read(tmp_path / "model.onnx")

    by_proto = parse_proto(proto, arrays)
    by_ir = packed_node(next(iter(ir.load(tmp_path / "model.onnx").graph)))
    by_message = parse_proto(read.nodes[0], read.initializers)
    assert facts(by_proto) == facts(by_ir) == facts(by_message)
    for node in (by_proto, by_ir, by_message):
        assert node.operator == operator
        assert node.own == ({"accuracy_level": 0} if operator.is_product else {}) | own
        assert [weights.integer for weights in node.operands] == [integer] * len(names)
    for node in (by_proto, by_ir):
        for weights, (name, packed) in zip(node.operands, linears.items(), strict=True):
            assert weights.name == name
            loaded = load(weights)
            assert loaded.rows_per_class == packed.rows_per_class
            for tensor in TENSORS:
                np.testing.assert_array_equal(getattr(loaded, tensor), getattr(packed, tensor))
    assert read_packed(tmp_path / "model.onnx").keys() == linears.keys()


ARITHMETIC = {
    "int8": ([2], np.int8, 64, 4, True),
    "float16": ([2], np.float16, 64, 4, False),
    "no codebook": ([12], np.float16, 64, 4, True),
    "level 3": ([2], np.int8, 64, 3, False),
    "widest": ([0], np.int8, 65536, 4, True),
    "too wide": ([0], np.int8, 65537, 4, False),
}


@pytest.mark.parametrize(("classes", "entries", "columns", "level", "integer"), ARITHMETIC.values(), ids=ARITHMETIC)
def test_which_products_are_in_integers(classes, entries, columns, level, integer):
    packed = random_packed(RNG, 2, columns, classes, entries)
    node, arrays = node_on(LUT_MATMUL, {"layer": packed}, accuracy_level=level)
    (weights,) = parse_proto(node, arrays).operands
    assert weights.integer == integer


def with_attribute(node, name, value):
    """Replace an attribute; None leaves it out."""
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept if value is None else [*kept, helper.make_attribute(name, value)])


REFUSALS = {
    "version": ("version", 3, "version must be 1 or 2, got 3"),
    "no version": ("version", None, "the attribute version is missing"),
    "N": ("N", 0, "N must be 1..2147483647, got 0"),
    "type": ("K", 64.0, "K must be an integer, got another type"),
    "rows": ("rows_per_class", [24], "rows_per_class must be 16 integers, got [24]"),
    "level": ("accuracy_level", 5, "accuracy_level must be 0..4, got 5"),
    "unknown": ("shine", 3, "the attribute shine is not supported"),
    "of another operator": ("dtype", 1, "the attribute dtype is not supported"),
}


@pytest.mark.parametrize(("name", "value", "message"), REFUSALS.values(), ids=REFUSALS)
def test_a_wrong_attribute_is_refused(name, value, message):
    node, arrays = node_on(LUT_MATMUL, {"layer": random_packed(RNG, 24, 64, [1, 2])})
    with_attribute(node, name, value)
    with pytest.raises(UserError, match=re.escape(f"LutMatMul 'the node': {message}") + "$"):
        parse_proto(node, arrays)


def test_a_wrong_node_is_refused():
    node, arrays = node_on(LUT_SWIGLU, dict.fromkeys(("g", "u"), random_packed(RNG, 24, 64, [1, 2])))
    with pytest.raises(UserError, match=r"LutSwiglu 'the node': up_codes must be an initializer, got 'u\.codes'"):
        parse_proto(node, {name: array for name, array in arrays.items() if name != "u.codes"})
    del node.input[-1]
    with pytest.raises(UserError, match="LutSwiglu 'the node': must have 13 inputs, got 12"):
        parse_proto(node, arrays)
    node.op_type = "LutSparkle"
    with pytest.raises(UserError, match=r"LutSparkle 'the node': the operator is unknown; .*LutMatMul, LutSwiglu"):
        parse_proto(node, arrays)


def test_a_writer_is_told_what_an_operator_lacks():
    packed = random_packed(RNG, 24, 64, [1, 2])
    with pytest.raises(UserError, match="the attribute accuracy_level is not supported"):
        LUT_GATHER.node_attributes([packed], dtype=1, accuracy_level=4)
    with pytest.raises(UserError, match="the attribute dtype is missing"):
        LUT_GATHER.node_attributes([packed])
    with pytest.raises(UserError, match="dtype must be 1, 10 or 16, got 11"):
        LUT_GATHER.node_attributes([packed], dtype=11)


def test_names_of_inputs_and_attributes():
    assert OPERATORS.keys() == {"LutMatMul", "LutSwiglu", "LutGather", "LutMoe"}
    assert LUT_MATMUL.inputs == ("X", *TENSORS)
    assert LUT_SWIGLU.inputs[:2] == ("X", "gate_codes")
    assert LUT_SWIGLU.inputs[-1] == "up_bias"
    assert [attribute.name for attribute in LUT_SWIGLU.attributes] == [
        *("version", "N", "K", "accuracy_level", "gate_rows_per_class", "up_rows_per_class")
    ]
    assert LUT_MOE.inputs[:4] == ("X", "experts", "shares", "gate_codes")
    assert [attribute.name for attribute in LUT_MOE.attributes[:7]] == [
        *("version", "N", "K", "experts", "per_token", "gating", "accuracy_level")
    ]


def test_a_mixture_has_the_rows_of_all_experts():
    parts = [random_packed(RNG, *shape, [1, 2]) for shape in ((60, 64), (60, 64), (192, 20))]
    own = {"experts": 3, "per_token": 2, "gating": 0, "accuracy_level": 4}
    node, arrays = node_on(LUT_MOE, dict(zip("gud", parts, strict=True)), **own)
    parsed = parse_proto(node, arrays)
    assert [(w.out_features, w.in_features) for w in parsed.operands] == [(60, 64), (60, 64), (192, 20)]
    assert parsed.own == own
    assert parsed.read_share == 2 / 3
    assert all(weights.integer for weights in parsed.operands)
    (attribute,) = [attribute for attribute in node.attribute if attribute.name == "N"]
    assert attribute.i == 20


def test_a_session_refuses_another_version_in_one_line(copy):
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.domain == DOMAIN:
            with_attribute(node, "version", 3)
    onnx.save(model, copy / "model.onnx")
    with pytest.raises(UserError, match=r"model\.onnx: Lut\w+ '.*': version must be 1 or 2, got 3$"):
        Session(copy, kernel="function")


def test_the_widest_integer_product_is_that_of_the_kernels():
    header = Path(__file__).parents[2] / "custom_ops" / "include" / "skim" / "kernels.h"
    (columns,) = re.findall(r"kMaxIntegerColumns = (\d+);", header.read_text())
    assert int(columns) == MAX_INTEGER_COLUMNS
