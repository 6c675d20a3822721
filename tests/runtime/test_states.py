"""Decoders that keep more than keys and values of one size: graphs written by hand, compared with numpy."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from skim_runtime import GenaiSession, Session, UserError, bound_step
from skim_runtime.rotary_switch import ROTARY_SWITCH

RNG = np.random.default_rng(0)
VOCABULARY = 24
TOKENS = RNG.integers(0, VOCABULARY, 40)
PARTS = [TOKENS[:9], TOKENS[9:10], TOKENS[10:11], TOKENS[11:13], *TOKENS[13:20, None], TOKENS[20:]]
FLOAT, FLOAT16, INT32, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64
LAYERS = [(2, 1, 8), (4, 2, 16)]  # heads, KV heads, head size


class Graph:
    """Nodes, initializers, inputs and outputs of a graph, and the directory that it is saved into."""

    def __init__(self):
        self.nodes, self.initializers, self.metadata = [], [], {}
        self.inputs = {"input_ids": (INT64, ["batch", "s"]), "attention_mask": (INT64, ["batch", "t"])}
        self.outputs = {"logits": (FLOAT, ["batch", "s", VOCABULARY])}

    def add(self, op, inputs, outputs=None, **attributes):
        outputs = outputs or [f"value.{len(self.nodes)}"]
        domain = "com.microsoft" if op == "GroupQueryAttention" else ""
        self.nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def constant(self, value):
        name = f"constant.{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def state(self, name, element_type, shape):
        """An input and the output of the same shape."""
        past, present = f"past{'_key_values' if name.endswith(('key', 'value')) else ''}.{name}", f"present.{name}"
        self.inputs[past] = self.outputs[present] = (element_type, shape)
        return past, present

    def save(self, directory, context=64):
        def values(described):
            return [helper.make_tensor_value_info(name, *one) for name, one in described.items()]

        graph = helper.make_graph(
            self.nodes, "graph", values(self.inputs), values(self.outputs), initializer=self.initializers
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        helper.set_model_props(model, self.metadata)
        onnx.save(model, directory / "model.onnx")
        kinds = [(f"{time}_{kind}_names", kind) for time in ("past", "present") for kind in ("key", "value")]
        names = {key: f"{'past_key_values' if 'past' in key else 'present'}.%d.{kind}" for key, kind in kinds}
        decoder = {
            "filename": "model.onnx",
            "head_size": LAYERS[0][2],
            "hidden_size": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "num_hidden_layers": len(LAYERS),
            "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask"}
            | {key: name for key, name in names.items() if "past" in key},
            "outputs": {"logits": "logits"} | {key: name for key, name in names.items() if "present" in key},
        }
        model = {"type": "llama", "context_length": context, "decoder": decoder, "vocab_size": VOCABULARY}
        config = {"model": {**model, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}}
        config["search"] = {"max_length": context, "past_present_share_buffer": True}
        (directory / "genai_config.json").write_text(json.dumps(config))
        return directory


@pytest.fixture
def sums(tmp_path):
    """Logits `(v + 1) * sum of the tokens so far + 0.25 * number of tokens before the step`."""
    graph = Graph()
    past, present = graph.state("3.conv", FLOAT, ["batch", 2, 3])
    ids = graph.add("Cast", ["input_ids"], to=FLOAT)
    total = graph.add("ReduceSum", [ids, graph.constant([1])], keepdims=0)
    graph.add("Add", [past, total], [present])
    count_past, count_present = graph.state("5.recurrent", FLOAT16, ["batch", 1, 2, 2])
    steps = graph.add("Cast", [graph.add("Size", ["input_ids"])], to=FLOAT16)
    graph.add("Add", [count_past, steps], [count_present])
    before = graph.add("ReduceMean", [past, graph.constant([1, 2])], keepdims=1)
    running = graph.add("CumSum", [ids, graph.constant(np.int64(1))])
    sums = graph.add("Add", [graph.add("Unsqueeze", [running, graph.constant([2])]), before])
    scaled = graph.add("Mul", [sums, graph.constant(np.arange(1, VOCABULARY + 1, dtype=np.float32))])
    count = graph.add("Cast", [graph.add("ReduceMean", [count_past], keepdims=0)], to=FLOAT)
    graph.add("Add", [scaled, graph.add("Mul", [count, graph.constant(np.float32(0.25))])], ["logits"])
    return graph.save(tmp_path)


def summed(parts):
    """Logits of `sums` after each step."""
    total = 0
    for i, part in enumerate(parts):
        running = total + np.cumsum(part)
        yield running[:, None] * np.arange(1, VOCABULARY + 1) + 0.25 * sum(map(len, parts[:i]))
        total = running[-1]


@pytest.mark.parametrize("capacity", [0, 64], ids=["growing cache", "roomy cache"])
def test_states_of_fixed_size(sums, capacity):
    session = Session(sums, threads=1)
    for _ in range(2):  # the second time after a reset
        session.reset(capacity)
        for part, want in zip(PARTS, summed(PARTS), strict=True):
            np.testing.assert_array_equal(session.step(part), want)
            np.testing.assert_array_equal(session.logits(part), next(summed([part])))  # nothing before
    assert session.length == len(TOKENS)


def test_states_are_computed_anew(sums, monkeypatch):
    """As where rotary tables switch, which is no matter to this graph."""
    session = Session(sums, threads=1)
    monkeypatch.setattr(session, "_rotary_switch", 10)
    for part, want in zip(PARTS, summed(PARTS), strict=True):
        np.testing.assert_array_equal(session.step(part), want)


def test_a_step_that_fails_leaves_the_states(sums, monkeypatch):
    session = Session(sums, threads=1)
    want = list(summed(PARTS))
    session.step(PARTS[0])

    class Failing:
        def __init__(self, inner):
            self._inner = inner

        def __getattr__(self, name):
            return getattr(self._inner, name)

        def run_with_iobinding(self, *values):
            self._inner.run_with_iobinding(*values)
            raise RuntimeError("too late")

    with monkeypatch.context() as patch:
        patch.setattr(session, "_session", Failing(session._session))
        with pytest.raises(UserError, match="refused by onnxruntime: too late"):
            session.step(PARTS[1])
    np.testing.assert_array_equal(session.step(PARTS[1]), want[1])


@pytest.mark.parametrize("capacity", [0, 64], ids=["growing cache", "roomy cache"])
def test_states_that_stay_on_the_device(sums, monkeypatch, capacity):
    """Memory that the host can't see is played by a copy; no CUDA graph is captured of buffers that take turns."""
    session, create, far = Session(sums, threads=1), bound_step.ort_value, []

    def elsewhere(array, element_type, device):
        if device == "cuda":
            far.append(array := array.copy())
        return create(array, element_type, "cpu")

    monkeypatch.setattr(session, "device", "cuda")
    monkeypatch.setattr(session, "_graphs", True)
    monkeypatch.setattr(bound_step, "ort_value", elsewhere)
    for _ in range(2):
        session.reset(capacity)
        for part, want in zip(PARTS, summed(PARTS), strict=True):
            np.testing.assert_array_equal(session.step(part), want)
    assert session._fixed is None


def attention(positions=None, switch=None):
    """A graph of two layers of attention with random tables for weights, and its logits by numpy.

    Keys are multiplied by 1 or, once the mask is longer than `switch`, by 2.

    Args:
        positions: shape of the input position_ids; they are added to the logits, if any.
        switch: see above.
    """
    graph, tables = Graph(), []
    seqlens = graph.add("Sub", [graph.add("ReduceSum", ["attention_mask", graph.constant([1])]), graph.constant([1])])
    seqlens = graph.add("Cast", [seqlens], to=INT32)
    length = graph.add("Gather", [graph.add("Shape", ["attention_mask"]), graph.constant(np.int64(1))])
    total = graph.add("Cast", [length], to=INT32)
    if switch is not None:
        graph.metadata = {ROTARY_SWITCH: str(switch)}
        condition = graph.add("Greater", [length, graph.constant(np.int64(switch))])
        branches = {}
        for name, value in (("then_branch", 2.0), ("else_branch", 1.0)):
            made = numpy_helper.from_array(np.float32(value))
            node = helper.make_node("Constant", [], [name], value=made)
            branches[name] = helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, FLOAT, [])])
        factor = graph.add("If", [condition], **branches)
    outputs = []
    for i, (heads, kv_heads, head_size) in enumerate(LAYERS):
        widths = [heads * head_size, kv_heads * head_size, kv_heads * head_size]
        weights = [RNG.normal(size=(VOCABULARY, width)).astype(np.float32) for width in widths]
        q, k, v = (graph.add("Gather", [graph.constant(weight), "input_ids"]) for weight in weights)
        if switch is not None:
            k = graph.add("Mul", [k, factor])
        shape = ["batch", kv_heads, "past" if i else "p", head_size if i else "kv_cache_dim"]
        past, present = zip(*(graph.state(f"{i}.{kind}", FLOAT, shape) for kind in ("key", "value")), strict=True)
        output = f"attention.{i}"
        attributes = {"num_heads": heads, "kv_num_heads": kv_heads}
        inputs = [q, k, v, *past, seqlens, total]
        outputs.append(graph.add("GroupQueryAttention", inputs, [output, *present], **attributes))
        tables.append(weights)
    head = RNG.normal(size=(sum(heads * size for heads, _, size in LAYERS), VOCABULARY)).astype(np.float32)
    logits = graph.add("MatMul", [graph.add("Concat", outputs, axis=-1), graph.constant(head)])
    if positions is not None:
        graph.inputs["position_ids"] = (INT64, positions)
        numbers = graph.add("Cast", ["position_ids"], to=FLOAT)
        if len(positions) > 2:
            numbers = graph.add("ReduceMean", [numbers, graph.constant([0])], keepdims=0)
        column = graph.add("Unsqueeze", [numbers, graph.constant([2])])
        logits = graph.add("Add", [logits, column])
    graph.add("Identity", [logits], ["logits"])

    def reference(ids):
        found = []
        for (heads, kv_heads, size), weights in zip(LAYERS, tables, strict=True):
            q, k, v = (weight[ids].reshape(len(ids), -1, size).astype(np.float64) for weight in weights)
            if switch is not None and len(ids) > switch:
                k = 2 * k
            k, v = (np.repeat(x, heads // kv_heads, axis=1) for x in (k, v))
            scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(size)
            scores[:, np.triu(np.ones((len(ids), len(ids)), bool), 1)] = -np.inf
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            found.append(np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v).reshape(len(ids), -1))
        return np.concatenate(found, axis=1) @ head + (0 if positions is None else np.arange(len(ids))[:, None])

    return graph, reference


def assert_close(got, want):
    assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)


@pytest.mark.parametrize("positions", [None, ["batch", "s"], [3, "batch", "s"]])
@pytest.mark.parametrize("capacity", [0, 64], ids=["growing cache", "roomy cache"])
def test_layers_with_heads_of_different_sizes(tmp_path, positions, capacity):
    graph, reference = attention(positions)
    session = Session(graph.save(tmp_path), threads=1)
    want = reference(TOKENS)
    assert_close(session.logits(TOKENS), want)
    session.reset(capacity)
    assert_close(np.concatenate([session.step(part) for part in PARTS]), want)


@pytest.mark.parametrize("positions", [["batch", "s"], [3, "batch", "s"]])
def test_positions_of_a_step_that_a_graph_is_captured_of(tmp_path, positions, monkeypatch):
    graph, reference = attention(positions)
    session = Session(graph.save(tmp_path), threads=1)
    monkeypatch.setattr(session, "_graphs", True)
    got = [session.step(part).copy() for part in PARTS]  # on the CPU they lie in the buffer of all steps
    assert_close(np.concatenate(got), reference(TOKENS))
    assert session._graph >= 0


@pytest.mark.parametrize("kind", [Session, GenaiSession])
@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_rotary_tables_that_switch(tmp_path, kind, chunk, monkeypatch):
    monkeypatch.setattr("skim_runtime.session.PROMPT_CHUNK", chunk)
    graph, reference = attention(switch=15)
    session = kind(graph.save(tmp_path), threads=1)
    assert session.directory.graph.rotary_switch == 15
    for parts in (PARTS, [TOKENS[:15], TOKENS[15:]], [TOKENS[:16], TOKENS[16:]], [TOKENS], [TOKENS[:15]]):
        session.reset(64)
        total = 0
        for part in parts:
            total += len(part)
            got = session.step(part)
            assert_close(got, reference(TOKENS[:total])[-len(got) :])


def test_logits_alone_choose_their_own_tables(tmp_path):
    graph, reference = attention(switch=15)
    session = Session(graph.save(tmp_path), threads=1)
    session.step(TOKENS)
    for count in (15, 16):
        assert_close(session.logits(TOKENS[:count]), reference(TOKENS[:count]))


def refusal(directory):
    with pytest.raises(UserError) as error:
        Session(directory)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "cache_position",
            (INT64, ["s"]),
            "has an unknown input 'cache_position'; expected the graph of a text decoder",
        ),
        ("past.0.ssm", (FLOAT, ["batch", 4]), "has an unknown input 'past.0.ssm'"),
        ("past.0.conv", (FLOAT, ["batch", 4]), "has an input 'past.0.conv', but no output 'present.0.conv'"),
        (
            "past.0.conv",
            (FLOAT, ["batch", "n"]),
            "past.0.conv is tensor(float) ['batch', 'n']; expected sizes that are",
        ),
        ("past.0.conv", (FLOAT, ["batch", 1 << 40]), "past.0.conv is tensor(float) ['batch', 1099511627776]; expected"),
        ("past.0.conv", (INT64, ["batch", 4]), "past.0.conv is tensor(int64) ['batch', 4]; expected sizes that are"),
        ("past_key_values.7.key", (FLOAT, ["batch", "h", "p", 8]), "expected [1, KV heads, S, head size]"),
        ("past_key_values.7.key", (FLOAT, ["batch", 2, 8]), "expected [1, KV heads, S, head size]"),
        ("position_ids", (INT64, [4, "batch", "s"]), "position_ids is [4, 'batch', 's']; expected [1, S] or [3, 1, S]"),
    ],
)
def test_inputs_that_are_not_known(tmp_path, name, value, message):
    graph, _ = attention()
    graph.inputs[name] = value
    assert message in refusal(graph.save(tmp_path))


@pytest.mark.parametrize("value", ["", "-1", "1e3", "9" * 30, "٣"])
def test_a_switch_that_is_no_number(tmp_path, value):
    graph, _ = attention(switch=15)
    graph.metadata = {ROTARY_SWITCH: value}
    assert "ai.skim.rotary_switch in its metadata is" in refusal(graph.save(tmp_path))


def test_keys_that_attention_does_not_append_in_place(tmp_path):
    graph, _ = attention()
    graph.outputs["present.9.key"] = (FLOAT, ["batch", 1, "t", 8])
    graph.inputs["past_key_values.9.key"] = (FLOAT, ["batch", 1, "t", 8])
    graph.add("Identity", ["past_key_values.9.key"], ["present.9.key"])
    assert "must come from GroupQueryAttention nodes" in refusal(graph.save(tmp_path))
