"""Checkpoints: tensors come back as saved, and everything that can be wrong with a directory is said in one line."""

import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from skim_export.checkpoint import Checkpoint, Member, architecture_of, linear_bias, linear_weight
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from ..tiny_models import TEXT, tiny_llama, tiny_mistral


def edit_config(path: Path, **entries: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **entries}))


def edit_tensors(path: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors, add new ones, and drop those that are None."""
    tensors = {**load_file(path / "model.safetensors"), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tiny_llama(tmp_path / "model")
    saved = {name: tensor.to(dtype) for name, tensor in load_file(path / "model.safetensors").items()}
    edit_tensors(path, **saved)
    checkpoint = Checkpoint(path)
    assert checkpoint.names == sorted(saved)
    assert checkpoint.parameter_count == sum(tensor.numel() for tensor in saved.values())
    for name, tensor in saved.items():
        assert checkpoint.tensor(name).dtype == torch.float32
        assert torch.equal(checkpoint.tensor(name), tensor.float())


def test_sharded_checkpoint_equals_single_file(tmp_path: Path) -> None:
    single = Checkpoint(tiny_llama(tmp_path / "single"))
    sharded = Checkpoint(tiny_llama(tmp_path / "sharded", max_shard_size="100KB"))
    assert len(list(sharded.path.glob("*.safetensors"))) > 2
    assert sharded.names == single.names
    assert all(torch.equal(sharded.tensor(name), single.tensor(name)) for name in single.names)


def test_architecture_of_llama(tmp_path: Path) -> None:
    architecture = architecture_of(Checkpoint(tiny_llama(tmp_path / "model", layers=3)))
    assert [[linear.name for linear in block] for block in architecture.blocks] == [
        [f"model.layers.{i}.{unit}" for unit in
         ("attn.qkv_proj", "attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")]
        for i in range(3)
    ]  # fmt: skip
    shapes = [(linear.out_features, linear.in_features) for linear in architecture.blocks[2]]
    assert shapes == [(128, 64), (64, 64), (160, 64), (160, 64), (64, 160)]
    assert architecture.tied
    assert (architecture.vocabulary_size, architecture.hidden_size) == (320, 64)
    assert architecture.head_linear.members == (Member("model.embed_tokens", 0, 320),)


def test_weight_and_bias_of_a_fused_linear(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny_llama(tmp_path / "model", attention_bias=True))
    qkv, o, gate, *_ = architecture_of(checkpoint).blocks[1]
    saved = load_file(checkpoint.path / "model.safetensors")
    parts = [saved[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"]
    np.testing.assert_array_equal(linear_weight(checkpoint, qkv), torch.cat(parts).numpy())
    biases = [saved[f"model.layers.1.self_attn.{name}_proj.bias"] for name in "qkv"]
    np.testing.assert_array_equal(linear_bias(checkpoint, qkv), torch.cat(biases).numpy())
    np.testing.assert_array_equal(linear_bias(checkpoint, o), saved["model.layers.1.self_attn.o_proj.bias"].numpy())
    assert linear_bias(checkpoint, gate) is None


def test_a_member_without_bias_counts_as_zero(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny_llama(tmp_path / "model", attention_bias=True))
    qkv = architecture_of(checkpoint).blocks[0][0]
    edit_tensors(checkpoint.path, **{"model.layers.0.self_attn.k_proj.bias": None})
    bias = linear_bias(Checkpoint(checkpoint.path), qkv)
    assert bias is not None
    assert not bias[64:96].any()
    assert bias[:64].all()
    assert bias[96:].all()


def test_untied_head(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny_mistral(tmp_path / "model"))
    architecture = architecture_of(checkpoint)
    assert not architecture.tied
    assert architecture.head_linear.members == (Member("lm_head", 0, 320),)
    edit_tensors(checkpoint.path, **{"lm_head.weight": None})
    with pytest.raises(UserError, match=r"no tensor lm_head\.weight"):
        architecture_of(Checkpoint(checkpoint.path))


@pytest.mark.parametrize("equal", [True, False])
def test_a_head_that_differs_from_the_embedding_is_not_tied(tmp_path: Path, equal: bool) -> None:
    path = tiny_llama(tmp_path / "model", tie=True)
    embedding = load_file(path / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(path, **{"lm_head.weight": embedding.clone() if equal else embedding + 1})
    assert architecture_of(Checkpoint(path)).tied is equal


def test_old_rotary_buffers_are_ignored(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model")
    edit_tensors(path, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    assert architecture_of(Checkpoint(path)).blocks


def test_tokenizer(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny_llama(tmp_path / "model"))
    assert checkpoint.tokenizer.decode(checkpoint.tokenizer.encode(TEXT)) == TEXT


def test_missing_tokenizer(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny_llama(tmp_path / "model"))
    (checkpoint.path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer: tokenizer\.json or tokenizer\.model is missing"):
        _ = checkpoint.tokenizer


def test_damaged_tokenizer(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny_llama(tmp_path / "model"))
    (checkpoint.path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer of model .* cannot be loaded"):
        _ = checkpoint.tokenizer


@pytest.mark.parametrize(("content", "package"), [(b"\n\x0e", "sentencepiece"), (b"IQ== 0\n", "tiktoken")])
def test_what_a_tokenizer_of_an_older_kind_needs(tmp_path: Path, content: bytes, package: str) -> None:
    checkpoint = Checkpoint(tiny_llama(tmp_path / "model"))
    (checkpoint.path / "tokenizer.json").unlink()
    (checkpoint.path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=rf"tokenizer\.model: to read it, install the package {package}"):
        _ = checkpoint.tokenizer


@pytest.mark.parametrize("value", [1e30, -7e4, float("nan"), float("-inf")])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_values_that_cannot_be_stored_are_found_at_once(tmp_path: Path, name: str, value: float) -> None:
    path = tiny_llama(tmp_path / "model")
    Checkpoint(path).check_values(Progress())
    tensor = load_file(path / "model.safetensors")[name].clone()
    tensor[-1] = value
    edit_tensors(path, **{name: tensor})
    holds = "NaN or infinity" if not np.isfinite(value) else f"a value of {abs(value):.3g}; 65504 at most"
    with pytest.raises(UserError, match=rf"tensor {name} in .*model\.safetensors holds {re.escape(holds)}"):
        Checkpoint(path).check_values(Progress())


def test_a_message_is_one_line_whatever_a_file_is_called(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        Checkpoint(tmp_path / "two\nlines")
    assert "two lines is not a directory" in str(error.value)


def test_not_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a directory"):
        Checkpoint(tmp_path / "absent")


def test_missing_config(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model")
    (path / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        Checkpoint(path)


def test_config_that_is_no_json(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model")
    (path / "config.json").write_text("{,}")
    with pytest.raises(UserError, match=r"config\.json cannot be read as JSON"):
        Checkpoint(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "1", '{"a": NaN}', '{"a": 1e999}', '{"a": -Infinity}', "\xff"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_that_is_none_of_ours(tmp_path: Path, name: str, text: str) -> None:
    path = tiny_llama(tmp_path / "model", max_shard_size="100KB")
    (path / name).write_text(text, "latin-1")
    with pytest.raises(UserError, match=re.escape(name)) as error:
        Checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_hidden_layers", 10_000_000, "num_hidden_layers is 10000000, the tensors are of 2 blocks"),
        ("num_hidden_layers", 1, "num_hidden_layers is 1, the tensors are of 2 blocks"),
        ("max_position_embeddings", 100_000_000, "max_position_embeddings must be a whole number from 2 to 16777216"),
        ("max_position_embeddings", 1, "max_position_embeddings must be a whole number from 2"),
        ("hidden_size", 1 << 40, "hidden_size must be a whole number from 1"),
        ("head_dim", -64, "head_dim must be a whole number from 1"),
        ("rms_norm_eps", 2.0, "rms_norm_eps must be at least 0 and below 1, is 2.0"),
        ("num_attention_heads", 3, ""),
        ("hidden_act", "nobody", ""),
        ("rope_scaling", {"rope_type": "nobody"}, ""),
        ("vocab_size", "300", ""),
        ("architectures", "LlamaForCausalLM", "must name one architecture"),
        ("architectures", [1], "must name one architecture"),
        ("quantization_config", "int8", "is quantized in a way that cannot be read (int8, as config.json says)"),
    ],
)
def test_configs_that_do_not_fit_the_tensors(tmp_path: Path, name: str, value: object, message: str) -> None:
    path = tiny_llama(tmp_path / "model")
    edit_config(path, **{name: value})
    with pytest.raises(UserError) as error:
        architecture_of(Checkpoint(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_quantization_is_none(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model")
    edit_config(path, quantization_config=None)
    Checkpoint(path)


@pytest.mark.parametrize("name", ["../model/model-00001-of-00002.safetensors", "{absolute}", "", 1, None, ["a"]])
def test_shards_lie_in_the_directory(tmp_path: Path, name: object) -> None:
    path = tiny_llama(tmp_path / "model", max_shard_size="100KB")
    index = json.loads((path / "model.safetensors.index.json").read_text())
    shard = next(iter(index["weight_map"].values()))
    wanted = str(path / shard) if name == "{absolute}" else name
    index["weight_map"]["model.norm.weight"] = wanted
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model\.norm\.weight is in .*; expected the name of a file beside it"):
        Checkpoint(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
def test_links_stay_in_the_directory(tmp_path: Path, name: str) -> None:
    path = tiny_llama(tmp_path / "model")
    (path / name).rename(tmp_path / name)
    (path / name).symlink_to(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: is a link to .* outside of the model's directory"):
        Checkpoint(path)
    (path / name).unlink()
    (path / "other").write_bytes((tmp_path / name).read_bytes())
    (path / name).symlink_to("other")
    Checkpoint(path)


def test_links_of_a_hub_cache(tmp_path: Path) -> None:
    blobs, path = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    tiny_llama(path)
    for i, file in enumerate(sorted(path.iterdir())):
        file.rename(blobs / str(i))
        file.symlink_to(f"../../blobs/{i}")
    architecture_of(Checkpoint(path))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_pipes_and_devices_are_refused(tmp_path: Path, name: str) -> None:
    path = tiny_llama(tmp_path / "model")
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(UserError, match=f"{name}: is no ordinary file"):
        Checkpoint(path)
    (path / name).unlink()
    (path / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match=f"{name}: is a link to /dev/zero"):
        Checkpoint(path)


def test_config_of_an_unknown_model(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model")
    edit_config(path, model_type="nobody-knows-me")
    with pytest.raises(UserError, match="is no configuration that transformers reads"):
        architecture_of(Checkpoint(path))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pickled weights, which are never unpickled \(pytorch_model\.bin\)"):
        Checkpoint(path)


def test_what_to_do_with_pickled_weights_does_it(tmp_path: Path) -> None:
    """The command in the message writes a model that can be read."""
    path = tiny_llama(tmp_path / "model")
    want = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save(want, path / "pytorch_model.bin")
    with pytest.raises(UserError) as error:
        Checkpoint(path)
    _, _, command = str(error.value).partition("python -c ")
    exec(*shlex.split(command))
    checkpoint = Checkpoint(tmp_path / "model-safetensors")
    assert checkpoint.tokenizer.encode(TEXT)
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in want.items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("consolidated.safetensors", "has only weights in their maker's own layout (consolidated.safetensors)"),
        ("model-00001-of-00002.safetensors", "has only safetensors that no index names"),
        ("adapter_config.json", "has a LoRA adapter"),
    ],
)
def test_other_weights_are_named(tmp_path: Path, name: str, message: str) -> None:
    path = tiny_llama(tmp_path / "model")
    (path / "model.safetensors").rename(path / name)
    with pytest.raises(UserError, match=re.escape(message)):
        Checkpoint(path)


def test_weights_that_are_packed_without_a_word(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model")
    edit_tensors(path, **{"model.layers.0.mlp.up_proj.qweight": torch.zeros(8, 64, dtype=torch.int32)})
    with pytest.raises(UserError, match=r"\(tensor model\.layers\.0\.mlp\.up_proj\.qweight\), but config\.json has no"):
        Checkpoint(path)


def test_the_single_file_goes_before_the_index_as_in_transformers(tmp_path: Path) -> None:
    path, other = tiny_llama(tmp_path / "model", max_shard_size="100KB"), tiny_llama(tmp_path / "other")
    edit_tensors(other, **{"model.norm.weight": torch.full((64,), 7.0)})
    (other / "model.safetensors").rename(path / "model.safetensors")
    assert Checkpoint(path).tensor("model.norm.weight")[0] == 7
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(path).model.norm.weight[0] == 7


def test_no_weights(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model")
    (path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        Checkpoint(path)


@pytest.mark.parametrize("size", [0, 4, 1000, -1])
def test_truncated_safetensors(tmp_path: Path, size: int) -> None:
    file = tiny_llama(tmp_path / "model") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or incomplete"):
        Checkpoint(file.parent)


def test_missing_shard(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model", max_shard_size="100KB")
    shard = sorted(path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        Checkpoint(path)


def test_index_without_weight_map(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model", max_shard_size="100KB")
    (path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="has no weight_map"):
        Checkpoint(path)


def test_missing_tensor(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model")
    edit_tensors(path, **{"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(UserError, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        architecture_of(Checkpoint(path))


def test_tensor_of_another_shape(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model")
    edit_tensors(path, **{"model.layers.1.mlp.up_proj.weight": torch.zeros(161, 64)})
    with pytest.raises(UserError, match=r"up_proj\.weight .* has shape \[161, 64\]; config\.json means \[160, 64\]"):
        architecture_of(Checkpoint(path))


def test_tensor_that_belongs_to_nothing(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model", attention_bias=False)
    edit_tensors(path, **{"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)})
    with pytest.raises(UserError, match=r"q_proj\.bias, which is no part of its architecture"):
        architecture_of(Checkpoint(path))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    path = tiny_llama(tmp_path / "model")
    weight = torch.zeros(160, 64)
    weight[3, 5] = value
    edit_tensors(path, **{"model.layers.1.mlp.up_proj.weight": weight})
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight .* holds NaN or infinity"):
        Checkpoint(path).tensor("model.layers.1.mlp.up_proj.weight")


def test_weights_that_are_integers(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model")
    edit_tensors(path, **{"model.norm.weight": torch.ones(64, dtype=torch.int8)})
    with pytest.raises(UserError, match=r"model\.norm\.weight .* has type I8"):
        Checkpoint(path).tensor("model.norm.weight")


def test_unsupported_architecture(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model")
    edit_config(path, architectures=["MambaForCausalLM"])
    expected = "architecture MambaForCausalLM is not supported; supported, each with ForCausalLM: Cwm, Ernie4_5, "
    with pytest.raises(UserError, match=expected):
        architecture_of(Checkpoint(path))


def test_config_without_architecture(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model")
    edit_config(path, architectures=None)
    with pytest.raises(UserError, match="must name one architecture"):
        architecture_of(Checkpoint(path))


def test_rows_of_a_fused_layer(tmp_path):
    checkpoint = Checkpoint(tiny_llama(tmp_path / "model"))
    qkv = architecture_of(checkpoint).linears[0]
    whole = linear_weight(checkpoint, qkv)
    for start, stop in ((0, 5), (60, 70), (0, 128), (90, 500), (127, 128)):
        np.testing.assert_array_equal(linear_weight(checkpoint, qkv, slice(start, stop)), whole[start:stop])


def test_the_digest_is_of_all_that_counts(tmp_path):
    path = tiny_llama(tmp_path / "model", max_shard_size="100KB")
    seen = {Checkpoint(path).digest(Progress())}
    (path / "README.md").write_text("no part of the model")
    assert {Checkpoint(path).digest(Progress())} == seen
    for file in [*path.glob("*.safetensors"), path / "config.json", path / "tokenizer.json"]:
        content = file.read_bytes()
        file.write_bytes(content.replace(b"0", b"1", 1) if file.suffix == ".json" else content[:-1] + b"\0")
        seen.add(Checkpoint(path).digest(Progress()))
        file.write_bytes(content)
    assert len(seen) == 3 + len(list(path.glob("*.safetensors")))
