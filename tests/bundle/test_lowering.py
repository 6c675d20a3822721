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


OTHER_LAYERS = {
    "qwen3": "PREPARE PRODUCT NORM NORM ATTENTION PREPARE PRODUCT ADD_NORM {swiglu} PREPARE PRODUCT ADD_NORM",
    "gemma3": "PREPARE PRODUCT NORM NORM ATTENTION PREPARE PRODUCT NORM ADD_NORM "
    "PREPARE PRODUCT PRODUCT GELU_TANH MUL PREPARE PRODUCT NORM ADD_NORM",
    "granite": "PREPARE PRODUCT ATTENTION PREPARE PRODUCT SCALE ADD_NORM {swiglu} PREPARE PRODUCT SCALE ADD_NORM",
    "phi3": "PREPARE PRODUCT ATTENTION PREPARE PRODUCT ADD_NORM {swiglu} PREPARE PRODUCT ADD_NORM",
}
STARTS = {"gemma3": "EMBED SCALE NORM ", "granite": "EMBED SCALE NORM "}
ENDS = {"granite": " SCALE"}


@pytest.mark.parametrize("name", OTHER_LAYERS)
def test_other_architectures_are_lists_of_operators(name, exported):
    program = read_program(exported(name).directory / "model.onnx")
    layers = 3 * (OTHER_LAYERS[name].format(swiglu="PREPARE PRODUCT PRODUCT SWIGLU") + " ")
    assert operators(program) == STARTS.get(name, "EMBED NORM ") + layers + "PREPARE PRODUCT" + ENDS.get(name, "")


def test_norms_of_heads_are_of_their_channels(exported):
    program = read_program(exported("qwen3").directory / "model.onnx")
    queries, keys = (op for op in program.operators[3:6] if op.kind == Kind.NORM)
    (attention,) = (op for op in program.operators[3:7] if op.attention)
    assert [(op.channels, program.widths[op.outputs[0]]) for op in (queries, keys)] == [(32, 128), (32, 32)]
    (values,) = set(attention.inputs) - {*queries.outputs, *keys.outputs}
    starts = [program.parts[name].start for name in (*queries.inputs, *keys.inputs, values)]
    assert starts == [0, 128, 160]
    assert (attention.attention.heads, attention.attention.kv_heads, attention.attention.head_size) == (4, 1, 32)


def test_layers_have_tables_and_windows_of_their_own(exported):
    program = read_program(exported("gemma3").directory / "model.onnx")
    layers = [op.attention for op in program.operators if op.attention]
    assert [(layer.cos_cache, layer.window) for layer in layers] == [
        ("cos_cache_sliding", 24),
        ("cos_cache_sliding", 24),
        ("cos_cache_full", 0),
    ]
    assert [layer.scale for layer in layers] == pytest.approx([24**-0.5] * 3)


def test_layers_without_rotary_embedding_have_no_tables(exported):
    program = read_program(exported("smollm3").directory / "model.onnx")
    assert [op.attention.rotary_size for op in program.operators if op.attention] == [16, 16, 16, 0]


@pytest.mark.parametrize("name", MODELS)
def test_every_value_is_written_once_and_before_it_is_read(name, tiny):
    written = set()
    program = read_program(tiny(name).path / "model.onnx")
    for op in program.operators:
        assert written.issuperset(map(program.whole, op.inputs))
        assert written.isdisjoint(op.outputs)
        assert (op.kind == Kind.EMBED) == (not op.inputs)
        written.update(op.outputs)


def changed(tiny, directory, change):
    """The llama's ONNX file after a change, its tensors inside."""
    return changed_file(tiny("llama").path, directory, change)


def changed_file(model_directory, directory, change):
    model = onnx.load(model_directory / "model.onnx")
    change(model)
    onnx.save(model, directory / "model.onnx")
    return directory / "model.onnx"


def node(model, op_type, *, last=False):
    return [node for node in model.graph.node if node.op_type == op_type][-1 if last else 0]


def unknown_operator(model):
    node(model, "LutSwiglu").domain = "com.microsoft"


def unknown_attribute(model):
    node(model, "GroupQueryAttention").attribute.append(onnx.helper.make_attribute("smooth_softmax", 1))


def unknown_input(model):
    node(model, "GroupQueryAttention").input[9] = "cos_cache"


def other_lengths(model):
    node(model, "GroupQueryAttention").input[5] = "input_ids"


def constant_keys(model):
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
        (constant_keys, "its input 1 is cos_cache; expected a result of an operator before it"),
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
    assert message in refusal(changed(tiny, tmp_path, change))


def refusal(file):
    with pytest.raises(UserError) as error:
        read_program(file)
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)
    return str(error.value)


def split_of_tokens(model):
    node(model, "Split").attribute[0].i = 1


def short_split(model):
    constant(model, "[128, 64, 64]").CopyFrom(onnx.numpy_helper.from_array(np.array([128, 64, 32])))


def computed_split(model):
    node(model, "Split").input[1] = "/model/embed_tokens/Mul/output_0"


def other_shape(model):
    constant(model, "[0, -1, 32]").CopyFrom(onnx.numpy_helper.from_array(np.array([-1, 0, 32])))


def heads_that_do_not_divide(model):
    constant(model, "[0, -1, 32]").CopyFrom(onnx.numpy_helper.from_array(np.array([0, -1, 48])))


def heads_as_channels(model):
    node(model, "GroupQueryAttention").input[0] = node(model, "Reshape").output[0]


def few_keys(model):
    node(model, "GroupQueryAttention").input[1] = node(model, "GroupQueryAttention").input[0]


def scale_by_many(model):
    node(model, "Mul").input[1] = "model.layers.0.input_layernorm.weight"


def unlike_factors(model):
    node(model, "Mul", last=True).input[1] = "/model/embed_tokens/LutGather/output_0"


def unlike_terms(model):
    node(model, "SkipSimplifiedLayerNormalization").input[1] = "/model/layers.0/attn/qkv_proj/MatMul/output_0"


def divisor_of_zero(model):
    node(model, "Mul").op_type = "Div"
    constant(model, "8.0").CopyFrom(onnx.numpy_helper.from_array(np.float32(0)))


def constant(model, name):
    (found,) = (n for n in model.graph.node if n.op_type == "Constant" and n.name.endswith(f"/{name}"))
    return found.attribute[0].t


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (split_of_tokens, "attribute axis must be -1, got 1"),
        (short_split, "parts of [128, 64, 32] channels do not make 256 in 3 outputs"),
        (computed_split, "its input 1 is no constant"),
        (other_shape, "its shape is [-1, 0, 32], expected [0, -1, a divisor of 128]"),
        (heads_that_do_not_divide, "its shape is [0, -1, 48], expected [0, -1, a divisor of 128]"),
        (heads_as_channels, "its input 0 has runs of 32 channels, expected all 128 in one"),
        (few_keys, "4 and 2 heads do not fit 128, 128, 64 channels"),
        (scale_by_many, "its input 1 has shape [64], expected one element"),
        (unlike_factors, "its inputs have 96 and 64 channels, expected as many"),
        (unlike_terms, "its inputs have 64 and 256 channels, expected as many"),
        (divisor_of_zero, "Div /model/embed_tokens/Mul: divides by 0"),
    ],
)
def test_what_other_architectures_have_is_not_guessed(change, message, exported, tmp_path):
    assert message in refusal(changed_file(exported("gemma3").directory, tmp_path, change))


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("gemma4", "RotaryEmbedding /model/layers.0/attn/q_rotary/RotaryEmbedding"),
        ("gemma4-e", "RotaryEmbedding /model/layers.0/attn/q_rotary/RotaryEmbedding"),
        ("ministral3", "RotaryEmbedding /model/layers.0/attn/q_rotary/RotaryEmbedding"),
        ("phi3-long", "Greater /model/table_rows/Greater"),
        ("hunyuan", "RotaryEmbedding /model/layers.0/attn/q_rotary/RotaryEmbedding"),
        ("lfm2", "Transpose /model/layers.0/conv/Transpose_1"),
        ("mixtral", "MatMul /model/layers.0/moe/router/MatMul"),
        ("qwen3_5", "MatMul /model/layers.0/linear_attn/b_proj/MatMul"),
    ],
)
def test_other_architectures_are_refused_by_what_is_missing(name, node, exported):
    assert f": {node}: the runtime of bundles has no such operator" in refusal(exported(name).directory / "model.onnx")
