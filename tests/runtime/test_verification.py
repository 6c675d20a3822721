"""Damage to an exported directory is noticed: some of it at every start, all of it by `verify`."""

import hashlib
import json

import numpy as np
import onnx
import pytest

from skim_export.graph.external_data import save_model
from skim_runtime import Session, UserError, verification, verify
from skim_runtime.data_file import METADATA, SEAL_BYTES
from skim_runtime.progress import Progress

from .conftest import build_packed

DATA = "model.onnx.data"


def write_report(directory):
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in directory.iterdir()
        if path.name != "export.json"
    }
    (directory / "export.json").write_text(json.dumps({"files": files}))


@pytest.fixture
def reported(copy):
    """A directory with an export.json."""
    write_report(copy)
    return copy


def refusal(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_directory_as_it_was_written(reported):
    assert {path.name for path in verify(reported)} == {path.name for path in reported.iterdir()} - {"export.json"}
    Session(reported)


def test_every_flip_is_noticed(reported):
    content = (reported / DATA).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        (reported / DATA).write_bytes(damaged)
        assert f"{DATA}: is damaged or was changed" in refusal(verify, reported)


@pytest.mark.parametrize("name", [DATA, "model.onnx", "tokenizer.json", "genai_config.json"])
def test_other_damage_is_noticed(reported, name):
    file = reported / name
    content = file.read_bytes()
    for damaged, message in (
        (content[:-1], f"has {len(content) - 1} bytes, export.json says {len(content)}"),
        (content + b" ", f"has {len(content) + 1} bytes"),
        (b"", "has 0 bytes"),
        (content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], "is damaged or was changed"),
    ):
        file.write_bytes(damaged)
        assert f"{name}: {message}" in refusal(verify, reported)
    file.unlink()
    assert f"{name}: missing; export.json lists it" in refusal(verify, reported)
    file.mkdir()
    assert f"{name}: missing; export.json lists it" in refusal(verify, reported)


@pytest.mark.parametrize("size", [-1, 1, 4096])
def test_sizes_are_compared_at_every_start(reported, size):
    content = (reported / DATA).read_bytes()
    (reported / DATA).write_bytes(content[:size] if size < 0 else content + bytes(size))
    assert f"{DATA}: has {len(content) + size} bytes, export.json says" in refusal(Session, reported)


DESCRIBED = {"bytes": 1, "sha256": "0"}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"files": 1}', '{"files": {"a": 1}}', "[" * 100_000]
    + [json.dumps({"files": {name: DESCRIBED}}) for name in ("../a", "/etc/passwd", "", ".")]
    + [json.dumps({"files": {"a": DESCRIBED | wrong}}) for wrong in ({"bytes": "1"}, {"bytes": 1.5}, {"sha256": 1})],
)
def test_a_report_that_is_none(copy, text):
    (copy / "export.json").write_text(text)
    for check in (verify, Session):
        assert "export.json: is malformed" in refusal(check, copy)


def test_without_a_report_nothing_is_known(copy):
    assert "export.json: missing" in refusal(verify, copy)
    Session(copy)


def test_a_mixed_directory_is_refused(copy, hf, tmp_path):
    """Graph and data of two exports that differ in nothing but their weights."""
    other = build_packed(hf, tmp_path / "other", seed=2)
    assert (other / DATA).stat().st_size == (copy / DATA).stat().st_size
    (copy / DATA).write_bytes((other / DATA).read_bytes())
    assert f"{DATA}: is of another export than model.onnx" in refusal(Session, copy)


def test_graph_and_data_name_the_same_hash(copy):
    content = (copy / DATA).read_bytes()
    metadata = {entry.key: entry.value for entry in onnx.load(copy / "model.onnx").metadata_props}
    assert metadata[METADATA] == hashlib.sha256(content[:-SEAL_BYTES]).hexdigest()
    assert bytes.fromhex(metadata[METADATA]) in content[-SEAL_BYTES:]
    for damaged in (content[:-SEAL_BYTES] + bytes(SEAL_BYTES), content[:-SEAL_BYTES]):
        (copy / DATA).write_bytes(damaged)
        assert f"{DATA}: its end is missing or damaged" in refusal(Session, copy)


@pytest.mark.parametrize("name", ["row_scale", "norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_norms_and_scales_are_finite(copy, name, value):
    model = onnx.load(copy / "model.onnx")
    tensor = next(t for t in model.graph.initializer if name in t.name and t.data_type in (1, 10))
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[-1] = value
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    from onnx_ir import from_proto

    save_model(from_proto(model), copy / "model.onnx", Progress())
    assert f"{tensor.name} has values that are not finite" in refusal(Session, copy)


def test_weights_that_are_not_packed_are_not_read_at_every_start(fp32, monkeypatch):
    """A model that is not quantized has as many bytes of them as it is large."""
    read = []
    monkeypatch.setattr(verification, "_check_finite", lambda path, tensor: read.append(tensor))
    Session(fp32)
    assert read
    assert all(tensor.rank == 1 and tensor.size <= 1000 for tensor in read)
