"""What docs/format.md calls invalid is refused when the session is created, with a message that names the tensor."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper, numpy_helper

from skim_export.packed import CLASSES, PackedLinear, RowClass, class_bits
from tests.random_packed import random_packed

from .models import attributes, initializers, matmul_model, model, session


@pytest.fixture
def packed():
    """1-, 3- and 4-bit tables with int8 entries and 8-bit affine rows; K = 40 leaves 24 padding codes in every row."""
    return random_packed(np.random.default_rng(0), 12, 40, [0, 2, 3, 15], column_scale=True, bias=True)


def refused(proto, match):
    with pytest.raises(Exception, match=match) as error:
        session(proto)
    assert "LutMatMul node 'layer': " in str(error.value)


def test_a_valid_tensor_is_accepted(packed):
    session(matmul_model(packed))


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("version", 3, "version must be 1..2, got 3"),
        ("version", None, "attribute version is missing"),
        ("N", 0, "N and K must be 1..*, got N=0, K=40"),
        ("N", 2**33, "N and K must be"),
        ("N", 13, "rows_per_class must sum to N=13, got a sum of 12"),
        ("N", None, "attribute N is missing"),
        ("K", 0, "N and K must be"),
        ("K", -40, "N and K must be"),
        ("K", 2**62, "N and K must be"),
        ("K", 400, "codes must have"),
        ("K", 41, "column_scale must have K=41 or 0 elements, got 40"),
        ("K", None, "attribute K is missing"),
        ("rows_per_class", [12] + [0] * 14, "rows_per_class must be 16 integers"),
        ("rows_per_class", [12] + [0] * 16, "rows_per_class must be 16 integers"),
        ("rows_per_class", None, "rows_per_class must be 16 integers"),
        ("rows_per_class", [24, -12] + [0] * 14, "rows_per_class must be counts of 0..N=12, got 24"),
        ("rows_per_class", [-1, 12, 1] + [0] * 13, "rows_per_class must be counts of 0..N=12, got -1"),
        ("rows_per_class", [3, 0, 3, 3] + [0] * 12, "rows_per_class must sum to N=12, got a sum of 9"),
        ("rows_per_class", [3, 0, 2, 4] + [0] * 11 + [3], "codes must have"),
    ],
)
def test_attributes(packed, name, value, match):
    refused(matmul_model(packed, **{name: value}), match)


@pytest.mark.parametrize("name", PackedLinear.TENSORS)
@pytest.mark.parametrize("change", [-1, 1])
def test_sizes(packed, name, change):
    tensor = getattr(packed, name)
    changed = tensor[:-1] if change < 0 else np.append(tensor, tensor[-1:])
    refused(matmul_model(replace(packed, **{name: changed})), f"{name} must have")


def test_an_empty_row_class_with_mixed_rows(packed):
    refused(matmul_model(replace(packed, row_class=packed.row_class[:0])), "row_class must have N=12 elements, got 0")


@pytest.mark.parametrize("name", PackedLinear.TENSORS)
def test_ranks(packed, name):
    refused(matmul_model(replace(packed, **{name: getattr(packed, name)[None]})), f"{name} must have one dimension")


@pytest.mark.parametrize("name", PackedLinear.TENSORS)
def test_types(packed, name):
    """The runtime itself compares the types with those that the library registered."""
    changed = getattr(packed, name).astype(np.float64)
    with pytest.raises(Exception, match=rf"Type Error.*\({name}\)"):
        session(matmul_model(replace(packed, **{name: changed})))


def test_a_class_out_of_range(packed):
    row_class = packed.row_class.copy()
    row_class[3] = CLASSES
    refused(matmul_model(replace(packed, row_class=row_class)), "row_class must be 0..21, got 22 for row 3")


def test_classes_that_differ_from_the_counts(packed):
    row_class = packed.row_class.copy()
    row_class[:] = np.where(row_class == 2, 3, np.where(row_class == 3, 2, row_class))
    row_class[int(np.flatnonzero(row_class == 15)[0])] = 0
    refused(matmul_model(replace(packed, row_class=row_class)), "row_class does not agree with rows_per_class")


def test_a_class_that_differs_from_the_only_one():
    packed = random_packed(np.random.default_rng(1), 4, 32, [2])
    row_class = np.array([2, 2, 3, 2], np.uint8)
    refused(matmul_model(replace(packed, row_class=row_class)), "row_class does not agree with rows_per_class")


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["codebook", "row_scale", "column_scale", "bias"])
def test_values_that_are_not_finite(name, bad):
    rng = np.random.default_rng(2)
    packed = random_packed(rng, 12, 64, [1, 3, 10, 15], np.float16, column_scale=True, bias=True)
    tensor = getattr(packed, name).copy()
    for i in (0, tensor.size // 2, tensor.size - 1):
        changed = tensor.copy()
        changed[i] = bad
        refused(matmul_model(replace(packed, **{name: changed})), f"{name} has a value that is not finite")


@pytest.mark.parametrize("place", [0, -1])
def test_an_entry_without_a_negative(place):
    packed = random_packed(np.random.default_rng(2), 12, 64, [1, 10, 16, 20], np.int8)
    for section in packed.sections():
        if section.codebook.size:
            codebook = packed.codebook.copy()
            codebook[section.codebook_start :][: section.codebook.size][place] = -128
            model = matmul_model(replace(packed, codebook=codebook))
            if section.row_class.memory:
                refused(model, "codebook: an entry of a row with windows is -128, which has no negative")
            else:
                session(model)


@pytest.mark.parametrize("bad", [0.0, -0.0, -1.0])
def test_a_column_scale_that_is_not_positive(packed, bad):
    scale = packed.column_scale.copy()
    scale[7] = bad
    refused(matmul_model(replace(packed, column_scale=scale)), "column_scale has a value that is not positive")


@pytest.mark.parametrize("row_class", range(CLASSES))
@pytest.mark.parametrize("columns", [1, 40, 250, 300])
def test_a_padding_code_that_is_not_zero(row_class, columns):
    """A bit of the last superblock either belongs to a column, or is refused if it is set."""
    rng = np.random.default_rng(columns + row_class)
    packed = random_packed(rng, 3, columns, [row_class])
    bits, fields = class_bits(row_class), RowClass.numbered(row_class, "int8").fields
    lanes = 4 * -(-(columns % 256) // 32)
    tail = bits * lanes
    for position in rng.permutation(8 * tail)[:20]:
        codes = packed.codes.copy()
        end_of_row = int(rng.integers(1, 4)) * codes.size // 3
        codes[end_of_row - tail + position // 8] ^= 1 << (position % 8)
        proto = matmul_model(replace(packed, codes=codes))
        if column_of(fields, lanes, position) < columns % 256:
            session(proto)
        else:
            refused(proto, f"codes: a padding code of the {bits}-bit rows is not 0")


def column_of(fields, lanes, position):
    """Column, within the superblock, of the code that owns a bit of it."""
    vector, lane, bit = position // 8 // lanes, position // 8 % lanes, position % 8
    field = next(f for f in fields if f.vector == vector and f.bit <= bit < f.bit + f.length)
    return field.code * lanes + lane


@pytest.mark.parametrize("name", PackedLinear.TENSORS)
def test_weights_that_are_no_initializers(packed, name):
    proto = matmul_model(packed, tensors=[t for t in initializers(packed) if t.name != name])
    tensor = numpy_helper.from_array(getattr(packed, name))
    proto.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, [None]))
    refused(proto, f"{name} must be an initializer")


def test_the_name_of_the_node_is_said(packed):
    nodes = [
        helper.make_node("LutMatMul", ["X", *PackedLinear.TENSORS], ["Y"], name, domain="ai.skim", **values)
        for name, values in [("/model/layers.7/q_proj", attributes(packed) | {"version": 3})]
    ]
    x, y = (helper.make_tensor_value_info(name, 1, None) for name in "XY")
    with pytest.raises(Exception, match=r"LutMatMul node '/model/layers\.7/q_proj': version must be 1..2, got 3"):
        session(model(nodes, [x], [y], initializers(packed)))
