"""The table of whole models, on a tiny one."""

import argparse
import importlib.util
import json
import sys

import decode
import decoders
import engines
import gguf
import numpy as np
import onnx
import pytest

from skim_export import export
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress
from skim_runtime.session import Session

from ..tiny_models import tiny_llama
from ..tools import require_packages
from .command import measured, refusal


def arguments(*values):
    parser = argparse.ArgumentParser()
    decode.add_arguments(parser)
    return parser.parse_args([str(value) for value in values])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Directory with a tiny model and an export of it."""
    path = tmp_path_factory.mktemp("decode")
    tiny_llama(path / "model")
    export(str(path / "model"), path / "3bit" / "model.onnx", bits=3, method="rtn")
    return path


@pytest.mark.slow
def test_the_table(files, tmp_path):
    options = ["--model", files / "model", "--exported", files / "3bit", "--work", tmp_path / "work"]
    options += ["--prompt", 20, "--new", 4, "--threads", 1, 2, "--rounds", 1]
    report, printed = measured(tmp_path / "rows.json", "decode", *options)
    rows = {(row["decoder"], row["engine"], row["threads"]): row for row in report["rows"]}
    ours, genai = str(files / "3bit"), "onnxruntime-genai"
    decoders = [(ours, "onnxruntime"), (ours, genai), (f"{genai} int4", genai), (f"{genai} fp32", genai)]
    assert rows.keys() == {(*decoder, threads) for decoder in decoders for threads in (1, 2)}
    for (name, _, threads), row in rows.items():
        baseline = rows[f"{genai} int4", genai, threads]
        (speeds,) = row["runs"]
        assert (row["prompt_speed"], row["decode_speed"]) == (speeds["prompt"], speeds["decode"])
        assert row["prompt_ratio"] == pytest.approx(row["prompt_speed"] / baseline["prompt_speed"])
        assert row["decode_ratio"] == pytest.approx(row["decode_speed"] / baseline["decode_speed"])
        assert row["gigabytes_per_second"] == pytest.approx(row["weight_bytes"] * row["decode_speed"] / 1e9)
        assert (row["kernel"] == "none") == (name != ours)
    weights = 2 * (64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 160) + 320 * 64
    assert rows[f"{genai} fp32", genai, 1]["weight_bytes"] == 4 * weights
    int4 = rows[f"{genai} int4", genai, 1]["weight_bytes"]
    assert weights / 2 < int4 < weights
    assert rows[ours, genai, 1]["weight_bytes"] == Session(files / "3bit").weight_bytes
    for text in ("prompt tok/s", "decode tok/s", "to int4", "GB/s", "medians of 1"):
        assert text in printed
    nodes = onnx.load(tmp_path / "work" / "model-genai-int4" / "model.onnx", load_external_data=False).graph.node
    levels = {
        a.i for node in nodes if node.op_type == "MatMulNBits" for a in node.attribute if a.name == "accuracy_level"
    }
    assert levels == {4}


def test_exports_are_made_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(decoders, "in_child", lambda *call: made.append(call))
    path = decoders.genai_export(tmp_path / "model", "int4", tmp_path)
    assert len(made) == 1
    path.mkdir()
    (path / "model.onnx").touch()
    assert decoders.genai_export(tmp_path / "model", "int4", tmp_path) == path
    assert len(made) == 1


def tiny_gguf(path):
    """A GGUF file with the kinds of fields and tensors that the recipe's has."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_token_list(["a", "b"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    random = np.random.default_rng(0)
    for name, kind in (("token_embd", "Q8_0"), ("blk.0.ffn_down", "Q4_1"), ("blk.0.attn_norm", "F32")):
        kind = gguf.GGMLQuantizationType[kind]
        data = random.normal(size=64 if kind == 0 else (8, 64)).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_requantizing_keeps_everything_else(tmp_path):
    tiny_gguf(tmp_path / "a.gguf")
    decoders._requantize(tmp_path / "a.gguf", tmp_path / "b.gguf")
    before, after = gguf.GGUFReader(tmp_path / "a.gguf"), gguf.GGUFReader(tmp_path / "b.gguf")
    assert before.fields.keys() == after.fields.keys()
    for name, field in before.fields.items():
        if name != "general.file_type":
            assert field.contents() == after.fields[name].contents()
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert (old.name, old.shape.tolist()) == (new.name, new.shape.tolist())
        values = [gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in (old, new)]
        if "ffn_down" in old.name:
            assert new.tensor_type == gguf.GGMLQuantizationType.Q4_0
            np.testing.assert_allclose(*values, atol=0.6)
        else:
            np.testing.assert_array_equal(*values)
    bytes_of = [engines.weight_bytes(engines.Decoder("", "llama.cpp", tmp_path / f"{name}.gguf")) for name in "ab"]
    assert bytes_of == [8 * 2 * (34 + 20), 8 * 2 * (34 + 18)]  # the embedding is the head, too


@pytest.mark.slow
def test_llama(smollm2, tmp_path):
    require_packages("xllamacpp")
    report_file = tmp_path / "rows.json"
    decode.run(
        arguments("--genai", "--gguf", "--prompt", 32, "--new", 8, "--rounds", 1, "--threads", 1, "--work", tmp_path,
                  "--json", report_file)
    )  # fmt: skip
    rows = json.loads(report_file.read_text())["rows"]
    assert [row["decoder"] for row in rows] == ["SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m.Q4_0.gguf"]
    for row in rows:
        assert row["engine"] == "llama.cpp"
        assert row["kernel"] is row["decode_ratio"] is row["prompt_ratio"] is None
        assert 0.1 < row["decode_speed"] < 1e4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", 0], "--prompt 0: must be at least 1"),
        (["--new", 1], "--new 1: must be at least 2"),
        (["--threads", 0], "--threads 0: must be at least 1"),
        (["--rounds", 0], "--rounds 0: must be at least 1"),
        (["--exported", "/missing"], "/missing: not a directory; give the one that skim-export wrote its model into"),
        (["--gguf", "/missing.gguf"], "--gguf /missing.gguf: no such file"),
        (["--genai"], "nothing to measure: give --exported DIR, --genai or --gguf"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(UserError, match=message):
        decode.run(arguments(*options))


def test_without_llama(monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--gguf needs llama\.cpp: pip install xllamacpp"):
        decode.run(arguments("--gguf"))


def test_models_without_a_gguf_file(tmp_path):
    with pytest.raises(UserError, match="--gguf: the recipe of model 'mistral-7b' has no GGUF file, give one"):
        decoders.recipe_ggufs("mistral-7b", tmp_path, Progress())


def test_a_refusal_is_one_line():
    assert refusal("decode", "--new", 1) == "benchmarks decode: error: --new 1: must be at least 2"
