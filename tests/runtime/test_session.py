import json
import warnings

import numpy as np
import onnx
import pytest

from skim_runtime import GenaiSession, Session, UserError
from skim_runtime.library import kernel_name

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(2, 300, 80)


@pytest.mark.parametrize("model", ["fp32", "packed", "packed_mistral"])
@pytest.mark.parametrize("capacity", [0, 200], ids=["growing cache", "roomy cache"])
def test_cached_logits_equal_uncached_ones(request, model, capacity):
    session = Session(request.getfixturevalue(model), threads=1)
    want = session.logits(TOKENS)
    session.reset(capacity)
    parts = [TOKENS[:30], *TOKENS[30:50, None], TOKENS[50:70], *TOKENS[70:, None]]
    got = np.concatenate([session.step(part) for part in parts])
    assert session.length == len(TOKENS)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def test_logits_leave_the_cache_alone(fp32):
    session = Session(fp32, threads=1)
    session.step(TOKENS[:5])
    want = session.step(TOKENS[5:6])
    session.reset()
    session.step(TOKENS[:5])
    session.logits(TOKENS)
    np.testing.assert_array_equal(session.step(TOKENS[5:6]), want)


def test_reset_forgets(fp32):
    session = Session(fp32, threads=1)
    first = session.step(TOKENS[:9])
    session.step(TOKENS[9:20])
    session.reset()
    np.testing.assert_array_equal(session.step(TOKENS[:9]), first)


def test_half_precision_gives_float32_logits(fp16, fp32):
    session = Session(fp16, threads=1)
    want = Session(fp32, threads=1).logits(TOKENS)
    got = session.logits(TOKENS)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())
    session.step(TOKENS[:-1])
    cached = session.step(TOKENS[-1:])
    assert cached.dtype == np.float32
    np.testing.assert_allclose(cached, want[-1:], atol=0.02 * np.abs(want).max())


def test_the_kernel_is_named(fp32, packed, packed_integer):
    for kind in (Session, GenaiSession):
        assert kind(fp32).kernel == "none"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert kind(packed).kernel == f"{kernel_name()}, exact arithmetic"
            assert kind(packed_integer).kernel == f"{kernel_name()}, integer arithmetic"
            assert kind(packed, kernel="function").kernel == "function fallback"


@pytest.mark.parametrize("kind", [Session, GenaiSession])
def test_integer_arithmetic_gives_nearly_the_same_logits(packed, packed_integer, kind):
    want, got = kind(packed).step(TOKENS), kind(packed_integer).step(TOKENS)
    assert 0 < np.abs(got - want).max() < 5e-3 * np.abs(want).max()


@pytest.mark.parametrize("kind", [Session, GenaiSession])
def test_the_function_fallback_gives_the_same_logits(packed, kind):
    with_library, without = kind(packed), kind(packed, kernel="function")
    want = with_library.step(TOKENS)
    np.testing.assert_allclose(without.step(TOKENS), want, atol=1e-4 * np.abs(want).max())


def test_both_engines_give_the_same_logits(packed):
    want = Session(packed).step(TOKENS)[-1]
    np.testing.assert_allclose(GenaiSession(packed).step(TOKENS)[-1], want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("kind", [Session, GenaiSession])
def test_the_installed_library_stands_in_for_the_models_own(packed, copy, kind):
    (copy / "libskim_ops.so").write_bytes(b"made for another machine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = kind(copy)
    assert session.kernel == f"{kernel_name()}, exact arithmetic"
    np.testing.assert_array_equal(session.step(TOKENS), kind(packed).step(TOKENS))


@pytest.mark.parametrize("kind", [Session, GenaiSession])
def test_without_a_library_a_warning_says_why(packed, copy, kind, monkeypatch):
    def missing():
        raise UserError("the installed one is missing")

    monkeypatch.setattr("skim_runtime.load_library.library_path", missing)
    (copy / "libskim_ops.so").unlink()
    with pytest.warns(RuntimeWarning, match=r"function fallback.*installed one is missing.*libskim_ops.so") as caught:
        session = kind(copy)
    assert len(caught) == 1
    assert session.kernel == "function fallback"
    want = Session(packed).step(TOKENS)[-1:]
    np.testing.assert_allclose(session.step(TOKENS)[-1:], want, atol=1e-4 * np.abs(want).max())


def test_weight_bytes_are_those_of_the_packed_tensors(packed, fp32):
    model = onnx.load(packed / "model.onnx")
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    read = [name for node in model.graph.node if node.op_type in ("LutMatMul", "LutSwiglu") for name in node.input[1:]]
    assert Session(packed).weight_bytes == sum(tensors[name].nbytes for name in read) > 0
    assert Session(fp32).weight_bytes == 0


def refusal(directory, **options):
    with pytest.raises(UserError) as error:
        Session(directory, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_missing_files_are_named(copy, tmp_path):
    assert "not a directory" in refusal(tmp_path / "nothing")
    assert "has no genai_config.json" in refusal(tmp_path)
    (copy / "model.onnx.data").unlink()
    assert "model.onnx.data: missing" in refusal(copy)
    (copy / "model.onnx").unlink()
    assert "model.onnx: missing" in refusal(copy)


def test_damaged_files_are_named(copy):
    data = (copy / "model.onnx.data").read_bytes()
    (copy / "model.onnx.data").write_bytes(data[:-64])
    assert "model.onnx.data: truncated" in refusal(copy)
    (copy / "model.onnx").write_bytes(b"\xff not protobuf")
    assert "model.onnx: not an ONNX file" in refusal(copy)
    (copy / "model.onnx").write_bytes(b"")
    assert "model.onnx: not an ONNX file" in refusal(copy)
    (copy / "genai_config.json").write_text("{")
    assert "genai_config.json: is malformed" in refusal(copy)
    (copy / "genai_config.json").write_text(json.dumps({"model": {}}))
    assert "genai_config.json: has no entry 'eos_token_id'" in refusal(copy)


@pytest.mark.parametrize("kind", [Session, GenaiSession])
def test_a_corrupt_packed_tensor_is_refused_in_one_line(copy, kind):
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "LutMatMul")
    attribute = next(attribute for attribute in node.attribute if attribute.name == "rows_per_class")
    attribute.ints[3] += 1
    onnx.save(model, copy / "model.onnx")
    with pytest.raises(UserError) as error:
        kind(copy)
    message = str(error.value)
    assert "rows_per_class" in message
    assert "\n" not in message


def test_options_out_of_range_are_refused(fp32):
    assert "threads must be at least 1, got 0" in refusal(fp32, threads=0)
    assert "kernel must be auto or function, got 'cuda'" in refusal(fp32, kernel="cuda")


def test_the_context_length_is_a_limit(fp32):
    session = Session(fp32)
    too_many = np.full(session.context_length + 1, 5)
    with pytest.raises(UserError, match="513 tokens do not fit the model's context of 512"):
        session.step(too_many)
    with pytest.raises(UserError, match="513 tokens do not fit"):
        session.logits(too_many)
    session.step(too_many[:-1])
    with pytest.raises(UserError, match="513 tokens do not fit"):
        session.step(too_many[:1])
