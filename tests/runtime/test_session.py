import json
import shutil
import subprocess
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from skim_runtime import GenaiSession, Session, UserError, generate
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


def configure(directory, change):
    """Change the entry "model" of genai_config.json."""
    file = directory / "genai_config.json"
    config = json.loads(file.read_text())
    change(config["model"])
    file.write_text(json.dumps(config))


@pytest.fixture
def marked_library(tmp_path):
    """A library that leaves a file when it is loaded, and the file."""
    source, mark = tmp_path / "library.c", tmp_path / "loaded"
    text = f'#include <stdio.h>\n__attribute__((constructor)) static void Run(void) {{ fopen("{mark}", "w"); }}\n'
    source.write_text(text)
    library = tmp_path / "library.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library, mark


@pytest.mark.parametrize("kind", [Session, GenaiSession])
@pytest.mark.parametrize("name", ["libskim_ops.so", "other.so", "../library.so", "{absolute}"])
def test_code_of_the_directory_is_not_run(packed, copy, kind, name, marked_library):
    library, mark = marked_library
    name = name.format(absolute=library)
    configure(copy, lambda model: model["decoder"]["session_options"].update(custom_ops_library=name))
    for place in (copy / "libskim_ops.so", copy / name):
        if place.resolve() != library:
            shutil.copyfile(library, place)
    before = (copy / "libskim_ops.so").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = kind(copy)
    assert session.kernel == f"{kernel_name()}, exact arithmetic"
    np.testing.assert_array_equal(session.step(TOKENS), kind(packed).step(TOKENS))
    assert not mark.exists()
    assert (copy / "libskim_ops.so").read_bytes() == before


@pytest.mark.parametrize("kind", [Session, GenaiSession])
def test_a_library_is_run_that_is_trusted(copy, kind, marked_library):
    library, mark = marked_library
    assert kind(copy, trust_library=True).kernel == f"{kernel_name()}, exact arithmetic"
    configure(copy, lambda model: model["decoder"]["session_options"].update(custom_ops_library="other.so"))
    shutil.copyfile(library, copy / "other.so")  # no operators in it
    with pytest.raises(UserError, match=r"other\.so: can't be used: "):
        kind(copy, trust_library=True)
    assert mark.exists()


@pytest.mark.parametrize("name", ["../library.so", "{absolute}", "none.so", ".", "", "link.so"])
def test_a_library_elsewhere_is_not_even_trusted(copy, name, marked_library):
    library, mark = marked_library
    name = name.format(absolute=library)
    (copy / "link.so").symlink_to(library)
    configure(copy, lambda model: model["decoder"]["session_options"].update(custom_ops_library=name))
    with pytest.raises(UserError, match=r"genai_config\.json: custom_ops_library .*: must be a file in the directory"):
        Session(copy, trust_library=True)
    assert not mark.exists()


@pytest.mark.parametrize("kind", [Session, GenaiSession])
def test_without_a_library_a_warning_says_why(packed, copy, kind, monkeypatch):
    def missing():
        raise UserError("the installed one is missing")

    monkeypatch.setattr("skim_runtime.load_library.library_path", missing)
    with pytest.warns(RuntimeWarning, match=r"function fallback.*installed one is missing") as caught:
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


def test_damaged_files_are_named(packed, copy):
    data = (copy / "model.onnx.data").read_bytes()
    (copy / "model.onnx.data").write_bytes(data[:-256])
    assert "model.onnx.data: truncated" in refusal(copy)
    (copy / "model.onnx").write_bytes(b"\xff not protobuf")
    assert "model.onnx: not an ONNX file" in refusal(copy)
    graph = (packed / "model.onnx").read_bytes()
    (copy / "model.onnx").write_bytes(graph.replace(b"codebook", b"codeboo\xff", 1))
    assert "model.onnx: not an ONNX file" in refusal(copy)
    (copy / "model.onnx").write_bytes(b"")
    assert "model.onnx: not an ONNX file" in refusal(copy)
    (copy / "genai_config.json").write_text("{")
    assert "genai_config.json: is malformed" in refusal(copy)
    (copy / "genai_config.json").write_text(json.dumps({"model": {}}))
    assert "genai_config.json: has no entry 'decoder'" in refusal(copy)
    (copy / "genai_config.json").write_text("[" * 100_000)
    assert "genai_config.json: is malformed" in refusal(copy)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("context_length", 0, "context_length must be a whole number from 1 to"),
        ("context_length", 2.5, "context_length must be a whole number from 1 to"),
        ("context_length", True, "context_length must be a whole number from 1 to"),
        ("vocab_size", 1 << 40, "vocab_size must be a whole number from 1 to"),
        ("vocab_size", 299, "model.onnx: logits is tensor(float)"),
        ("eos_token_id", [1, "2"], "eos_token_id must be a whole number from 0 to"),
        ("eos_token_id", None, "eos_token_id must be a whole number from 0 to"),
        ("decoder.head_size", -64, "head_size must be a whole number from 1 to"),
        ("decoder.head_size", 15, "model.onnx: refused by onnxruntime"),
        ("decoder.filename", "../model.onnx", "filename must be the name of a file in the directory"),
        ("decoder.filename", "/model.onnx", "filename must be the name of a file in the directory"),
        ("decoder.filename", "\ud800", "filename must be the name of a file in the directory"),
        ("decoder.filename", 7, "filename must be the name of a file in the directory"),
        ("decoder.session_options", [], "is malformed"),
        ("decoder", [], "is malformed"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(copy, name, value, message):
    def change(model):
        *path, last = name.split(".")
        for part in path:
            model = model[part]
        model[last] = value

    configure(copy, change)
    with pytest.raises(UserError) as error:
        Session(copy).step(TOKENS)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("location", "../model.onnx.data", "must be in a file beside, not in '../model.onnx.data'"),
        ("location", "/etc/passwd", "must be in a file beside, not in '/etc/passwd'"),
        ("location", "", "must be in a file beside, not in ''"),
        ("location", "x" * 256, "must be in a file beside, not in 'xxx"),
        ("location", "model\0", "must be in a file beside, not in 'model"),
        ("offset", "-4", "its offset must be a number of bytes, is '-4'"),
        ("length", "9" * 5000, "its length must be a number of bytes"),
        ("length", "1" * 18, "truncated"),
    ],
)
def test_data_elsewhere_is_refused(copy, key, value, message):
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    for entry in tensor.external_data:
        if entry.key == key:
            entry.value = value
    onnx.save(model, copy / "model.onnx")
    assert message in refusal(copy)


@pytest.mark.parametrize("kind", [Session, GenaiSession])
def test_what_are_no_tokens_is_refused(fp32, kind):
    session = kind(fp32)
    for wrong in (1.7, [1.7], 3, [[1, 2]], [[1], [2, 3]], [], "ab", [True], None):
        with pytest.raises(UserError, match="tokens must be a vector of whole numbers, at least one"):
            session.step(wrong)
    vocabulary = session.directory.vocabulary
    for wrong in (-1, vocabulary, 1 << 40):
        with pytest.raises(UserError, match=f"token {wrong}: the model knows those from 0 to {vocabulary - 1}"):
            session.step([5, wrong])
    assert session.step([5, vocabulary - 1]).shape[1] == vocabulary


@pytest.mark.parametrize("kind", [Session, GenaiSession])
def test_logits_that_are_not_finite_are_an_error(copy, kind):
    model = onnx.load(copy / "model.onnx")
    norm = next(tensor for tensor in model.graph.initializer if "norm" in tensor.name)
    values = onnx.numpy_helper.to_array(norm).copy()
    values[:] = 3e38  # finite itself, as is checked when the model is opened
    norm.CopyFrom(onnx.numpy_helper.from_array(values, norm.name))
    onnx.save(model, copy / "model.onnx")
    with pytest.raises(UserError, match="logits are not finite: its weights may be damaged"):
        generate(kind(copy), [1, 2, 3])


@pytest.mark.parametrize("kind", [Session, GenaiSession])
def test_threads_share_a_session(packed, kind):
    """Steps of one cache wait for each other: it ends as if the same tokens had come one after the other."""
    session = kind(packed, threads=1)
    session.reset(400)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [session.step([7]) for _ in range(40)], range(8)))
    alone = kind(packed, threads=1)
    alone.reset(400)
    for _ in range(320):
        alone.step([7])
    np.testing.assert_array_equal(session.step([9]), alone.step([9]))


@pytest.mark.parametrize("kind", [Session, GenaiSession])
def test_threads_with_sessions_of_their_own(packed, kind):
    want = kind(packed, threads=1).step(TOKENS)
    sessions = [kind(packed, threads=1) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda session: session.step(TOKENS), sessions):
            np.testing.assert_array_equal(got, want)


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


@pytest.mark.parametrize("version", ["1.17.3", "1.22.0", "0.9.1"])
def test_an_onnxruntime_that_is_too_old_is_named(packed, monkeypatch, version):
    monkeypatch.setattr(ort, "__version__", version)
    assert f"onnxruntime {version} is installed; 1.23 or newer is needed" in refusal(packed)


@pytest.mark.parametrize("version", ["1.23.0", "1.30.1rc2", "2.0"])
def test_newer_ones_are_taken(packed, monkeypatch, version):
    monkeypatch.setattr(ort, "__version__", version)
    Session(packed)


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
