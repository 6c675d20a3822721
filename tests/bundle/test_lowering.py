import numpy as np
import onnx
import pytest

from skim_export.bundle.lowering import read_program
from skim_export.bundle.program import Kind
from skim_runtime import UserError

from .models import MODELS


def operators(program):
    return " ".join(op.kind.name for op in program.operators)


LAYER = "PREPARE PRODUCT ATTENTION PREPARE PRODUCT ADD_NORM {mlp} PREPARE PRODUCT ADD_NORM "
SWIGLU = "PREPARE PRODUCT PREPARE PRODUCT SWIGLU"


def test_a_llama_is_a_list_of_operators(tiny):
    program = read_program(tiny("llama").path / "model.onnx")
    assert operators(program) == "EMBED NORM " + 2 * LAYER.format(mlp=SWIGLU) + "PREPARE PRODUCT"
    assert program.vocabulary == 320
    assert program.positions == 512
    assert program.gathered == {"model.embed_tokens"}
    assert program.operators[-1].unit == "model.embed_tokens"  # tied
    attention = program.operators[4].attention
    assert (attention.heads, attention.kv_heads, attention.head_size, attention.rotary_size) == (4, 2, 16, 16)
    assert attention.window == 0


def test_other_activations_are_operators_of_their_own(tiny):
    for name, activation in {"relu": "RELU", "gelu": "GELU", "gelu_tanh": "GELU_TANH"}.items():
        mlp = f"PREPARE PRODUCT PREPARE PRODUCT {activation} MUL"
        program = read_program(tiny(name).path / "model.onnx")
        assert operators(program) == "EMBED NORM " + LAYER.format(mlp=mlp) + "PREPARE PRODUCT"


def test_linears_of_one_column_scale_share_what_is_prepared(tiny, tmp_path):
    def same_scales(model):
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for layer in range(2):
            gate, up = (tensors[f"model.layers.{layer}.mlp.{part}_proj.column_scale"] for part in ("gate", "up"))
            up.raw_data = gate.raw_data

    program = read_program(changed(tiny, tmp_path, same_scales))
    mlp = "PREPARE PRODUCT PRODUCT SWIGLU"
    assert operators(program) == "EMBED NORM " + 2 * LAYER.format(mlp=mlp) + "PREPARE PRODUCT"


def test_a_window_is_one_of_positions(tiny):
    program = read_program(tiny("windowed").path / "model.onnx")
    assert {op.attention.window for op in program.operators if op.attention} == {16}


@pytest.mark.parametrize("name", MODELS)
def test_every_value_is_written_once_and_before_it_is_read(name, tiny):
    written = set()
    for op in read_program(tiny(name).path / "model.onnx").operators:
        assert written.issuperset(op.inputs)
        assert written.isdisjoint(op.outputs)
        assert (op.kind == Kind.EMBED) == (not op.inputs)
        written.update(op.outputs)


def changed(tiny, directory, change):
    """The llama's ONNX file after a change, its tensors inside."""
    model = onnx.load(tiny("llama").path / "model.onnx")
    change(model)
    onnx.save(model, directory / "model.onnx")
    return directory / "model.onnx"


def node(model, op_type):
    return next(node for node in model.graph.node if node.op_type == op_type)


def unknown_operator(model):
    node(model, "LutSwiglu").domain = "com.microsoft"


def unknown_attribute(model):
    node(model, "GroupQueryAttention").attribute.append(onnx.helper.make_attribute("smooth_softmax", 1))


def unknown_input(model):
    node(model, "GroupQueryAttention").input[9] = "cos_cache"


def other_lengths(model):
    node(model, "GroupQueryAttention").input[5] = "input_ids"


def unpacked_queries(model):
    node(model, "GroupQueryAttention").input[1] = "cos_cache"


def missing_heads(model):
    for attribute in node(model, "GroupQueryAttention").attribute:
        if attribute.name == "num_heads":
            attribute.i = 3


def other_axis(model):
    for attribute in node(model, "SimplifiedLayerNormalization").attribute:
        if attribute.name == "axis":
            attribute.i = 1


def other_ids(model):
    node(model, "LutGather").input[0] = "attention_mask"


def short_norm(model):
    for tensor in model.graph.initializer:
        if tensor.name == "model.layers.0.input_layernorm.weight":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(63, np.float32), tensor.name))


def computed_norm(model):
    node(model, "SimplifiedLayerNormalization").input[1] = "/model/embed_tokens/LutGather/output_0"


def wrong_columns(model):
    for attribute in node(model, "LutMatMul").attribute:
        if attribute.name == "K":
            attribute.i = 32


def no_logits(model):
    del model.graph.node[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unknown_operator, "LutSwiglu /model/layers.0/mlp/LutSwiglu: the runtime of bundles has no such operator"),
        (unknown_attribute, "the runtime of bundles does not know its attribute smooth_softmax (1)"),
        (unknown_input, "the runtime of bundles does not know its input 9 (cos_cache)"),
        (other_lengths, "its lengths do not follow from attention_mask"),
        (unpacked_queries, "queries, keys and values must be packed in one input"),
        (missing_heads, "3 and 2 heads do not fit 128 channels"),
        (other_axis, "attribute axis must be -1, got 1"),
        (other_ids, "looks up something else than input_ids"),
        (short_norm, "its input 1 (model.layers.0.input_layernorm.weight) has shape [63], expected [64]"),
        (computed_norm, "its input 1 is no constant"),
        (wrong_columns, "K is 32, but its input has 64 channels"),
        (no_logits, "has no logits; expected the graph of a text decoder"),
    ],
)
def test_what_the_runtime_lacks_is_refused_in_one_line(change, message, tiny, tmp_path):
    file = changed(tiny, tmp_path, change)
    with pytest.raises(UserError) as error:
        read_program(file)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
