"""LoRA adapters are merged as their formula says, whatever run of rows is read; others are refused in one line."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from skim_export import ExportOptions, TorchReference, export
from skim_export.checkpoint import Checkpoint, Model
from skim_export.cli.main import main
from skim_export.pipeline.plan import plan
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from ..tiny_models import tiny_llama
from .stored_weights import ADAPTER_PREFIX as PREFIX
from .stored_weights import awq, factors, save_adapter, stored_llama
from .test_checkpoint import edit_tensors

BLOCK = "model.layers.0."
Q, DOWN, EMBEDDING, HEAD = f"{BLOCK}self_attn.q_proj", f"{BLOCK}mlp.down_proj", "model.embed_tokens", "lm_head"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("base") / "model", layers=1, tie=False, intermediate_size=1200)


def change(tensors, name, scaling):
    """`scaling * B A`, number by number in float64."""
    a, b = tensors[f"{name}.lora_A.weight"].double(), tensors[f"{name}.lora_B.weight"].double()
    return (scaling * torch.einsum("nr,rk->nk", b, a)).float()


def close(found, want):
    assert torch.linalg.norm(found - want) <= 1e-6 * torch.linalg.norm(want)


@pytest.mark.parametrize(
    ("config", "rank", "scaling"),
    [
        ({}, 4, 4.0),
        ({"r": 8, "lora_alpha": 2}, 8, 0.25),
        ({"use_rslora": True}, 4, 16 / math.sqrt(4)),
        ({"r": 8, "rank_pattern": {"down_proj": 4, "q_proj": 4}}, 4, 4.0),
        ({"alpha_pattern": {"up_proj": 1, "layers.*_proj": 32}}, 4, 8.0),
        ({"alpha_pattern": {"own_proj": 1, "layers.0": 1}}, 4, 4.0),
    ],
)
def test_weights_are_changed_by_the_product(tmp_path, base, config, rank, scaling):
    tensors = {**factors(Q, 64, 64, rank), **factors(DOWN, 64, 1200, rank)}
    adapter = save_adapter(tmp_path / "adapter", tensors, **config)
    plain, merged = Checkpoint(base), Checkpoint(base, adapter)
    assert merged.names == plain.names
    assert merged.parameter_count == plain.parameter_count
    for module in (Q, DOWN):
        name = f"{module}.weight"
        close(merged.tensor(name), plain.tensor(name) + change(tensors, module, scaling))
    assert merged.adapted == {f"{Q}.weight", f"{DOWN}.weight"}
    for name in set(plain.names) - merged.adapted:
        assert torch.equal(merged.tensor(name), plain.tensor(name))


def test_a_run_of_rows_has_the_values_of_the_whole(tmp_path, base):
    gate = f"{BLOCK}mlp.gate_proj"
    merged = Checkpoint(base, save_adapter(tmp_path / "adapter", factors(gate, 1200, 64)))
    whole = merged.tensor(f"{gate}.weight")
    for start, stop in ((0, 1), (5, 9), (500, 530), (1023, 1200), (1199, 1300), (7, 7)):
        assert torch.equal(merged.tensor(f"{gate}.weight", slice(start, stop)), whole[start:stop])


def test_embeddings_and_modules_that_are_saved(tmp_path, base):
    a, b = torch.randn(4, 320), torch.randn(64, 4)
    saved, norm = torch.randn(320, 64), torch.rand(64)
    tensors = {f"{EMBEDDING}.lora_embedding_A": a, f"{EMBEDDING}.lora_embedding_B": b}
    tensors |= {f"{HEAD}.weight": saved, "model.norm.weight": norm}
    merged = Checkpoint(base, save_adapter(tmp_path / "adapter", tensors, modules_to_save=["lm_head", "norm"]))
    close(merged.tensor(f"{EMBEDDING}.weight"), Checkpoint(base).tensor(f"{EMBEDDING}.weight") + 4 * (b @ a).T)
    assert torch.equal(merged.tensor(f"{HEAD}.weight"), saved)
    assert torch.equal(merged.tensor("model.norm.weight"), norm)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type in adapter_config.json is 'IA3'; only LORA can be merged"),
        ({"peft_type": None}, "peft_type in adapter_config.json is None; only LORA can be merged"),
        ({"use_dora": True}, "use_dora in adapter_config.json is True; this variant cannot be merged"),
        ({"lora_bias": True}, "lora_bias in adapter_config.json is True; this variant"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out in adapter_config.json is True; this variant"),
        ({"bias": "all"}, "bias in adapter_config.json is 'all'; only adapters without biases"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights in adapter_config.json is 'pissa'; it changes"),
        ({"r": 0}, "r in adapter_config.json is 0; expected a whole number from 1"),
        ({"r": 8}, "has shape [4, 64]; expected [8, 64]"),
        ({"lora_alpha": "16"}, "lora_alpha in adapter_config.json is '16'; expected a number"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern in adapter_config.json is '('; is no regular expression"),
        ({"alpha_pattern": [4]}, "alpha_pattern in adapter_config.json is [4]; expected a JSON object"),
    ],
    ids=str,
)
def test_what_is_wrong_with_the_configuration_is_said(tmp_path, base, config, message):
    adapter = save_adapter(tmp_path / "adapter", factors(Q, 64, 64), **config)
    with pytest.raises(UserError) as caught:
        Checkpoint(base, adapter)
    assert message in str(caught.value)
    assert str(adapter) in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (factors(f"{BLOCK}mlp.fc1", 64, 64), f"has not: there is no tensor {BLOCK}mlp.fc1.weight"),
        (factors("model.norm", 64, 64), "model.norm has a weight of shape [64], and no matrix"),
        (factors(Q, 64, 60), "has shape [4, 60]; expected [4, 64]"),
        (factors(Q, 60, 64), "has shape [60, 4]; expected [64, 4]"),
        ({f"{Q}.lora_A.weight": torch.ones(4, 64)}, f"has no tensor {PREFIX}{Q}.lora_B.weight"),
        ({f"{Q}.lora_A.weight": torch.ones(4, 64, dtype=torch.int8)}, "has type I8; expected F64"),
        ({**factors(Q, 64, 64), f"{Q}.lora_magnitude_vector": torch.ones(64)}, "lora_magnitude_vector"),
        ({f"{HEAD}.weight": torch.ones(321, 64)}, "has shape [321, 64]; expected [320, 64]"),
        ({}, "adapter_model.safetensors has no tensors"),
    ],
    ids=lambda one: "" if isinstance(one, dict) else one,
)
def test_what_is_wrong_with_a_tensor_is_said(tmp_path, base, tensors, message):
    adapter = save_adapter(tmp_path / "adapter", tensors)
    with pytest.raises(UserError) as caught:
        Checkpoint(base, adapter)
    assert message in str(caught.value)
    assert str(adapter) in str(caught.value)


def test_values_are_checked_as_those_of_the_model(tmp_path, base):
    tensors = factors(Q, 64, 64)
    tensors[f"{Q}.lora_B.weight"][3, 2] = torch.inf
    checkpoint = Checkpoint(base, save_adapter(tmp_path / "adapter", tensors))
    with pytest.raises(UserError, match=rf"{Q}\.weight in .* holds NaN or infinity"):
        checkpoint.check_values(Progress())


def test_directories_that_are_no_adapters(tmp_path, base):
    with pytest.raises(UserError, match=r"--adapter .*: is no directory with adapter_config\.json and adapter_model\."):
        Checkpoint(base, base)
    adapter = save_adapter(tmp_path / "adapter", factors(Q, 64, 64))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"--adapter .*: has no adapter_model\.safetensors, and others are not read"):
        Checkpoint(base, adapter)
    (adapter / "adapter_model.safetensors").symlink_to(base / "model.safetensors")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: is a link to .* outside"):
        Checkpoint(base, adapter)


def test_an_adapter_is_no_model(tmp_path, base, capsys):
    adapter = save_adapter(tmp_path / "adapter", factors(Q, 64, 64))
    assert main(["--model", str(adapter), "-o", str(tmp_path / "out" / "model.onnx")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is a LoRA adapter (adapter_config.json): give the base model as --model (some/model) and" in line
    assert "this directory as --adapter" in line


def test_an_adapter_beside_the_model_is_not_passed_over(tmp_path, base):
    both = save_adapter(shutil.copytree(base, tmp_path / "both"), tensors := factors(Q, 64, 64))
    with pytest.raises(
        UserError, match=r"has a LoRA adapter beside its weights .*: merge it with --adapter .*/both, or"
    ):
        Checkpoint(both)
    merged = Model.open(both, adapter=both).checkpoint
    close(merged.tensor(f"{Q}.weight"), Checkpoint(base).tensor(f"{Q}.weight") + change(tensors, Q, 4))


def test_an_embedding_that_is_the_head_is_not_changed(tmp_path):
    path = tiny_llama(tmp_path / "model", layers=1, tie=True)
    adapter = save_adapter(tmp_path / "adapter", {f"{EMBEDDING}.weight": torch.ones(320, 64)})
    with pytest.raises(UserError, match=r"changes model\.embed_tokens, which is the output head of this model, too"):
        Model.open(path, adapter=adapter)


@pytest.mark.filterwarnings("ignore:model .* is quantized already:UserWarning")
def test_an_adapter_of_a_quantized_model(tmp_path):
    """An export has the bytes of one from the merged weights; another adapter is another export."""
    plain = tiny_llama(tmp_path / "plain", layers=1)
    meant = stored_llama(awq(16), plain, tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", tensors := factors(Q, 64, 64))
    merged = {name: torch.from_numpy(weight) for name, weight in meant.items()}
    merged[f"{Q}.weight"] += change(tensors, Q, 4)
    edit_tensors(plain, **merged)
    options = ExportOptions(bits=3, effort="weights")
    export(str(plain), tmp_path / "a" / "model.onnx", options)
    export(str(tmp_path / "base"), tmp_path / "b" / "model.onnx", options, adapter=adapter)
    assert (tmp_path / "a" / "model.onnx.data").read_bytes() == (tmp_path / "b" / "model.onnx.data").read_bytes()
    assert json.loads((tmp_path / "b" / "export.json").read_text())["options"]["adapter"] == "adapter"
    references = [
        TorchReference.of(Checkpoint(*places)).logits([2, 3, 5, 7])
        for places in ((plain,), (tmp_path / "base", adapter))
    ]
    np.testing.assert_allclose(*references, rtol=1e-4, atol=1e-5)


def test_the_digest_is_of_the_adapter_too(tmp_path, base):
    adapter = save_adapter(tmp_path / "adapter", factors(Q, 64, 64))
    seen = {checkpoint.digest(Progress()) for checkpoint in (Checkpoint(base), Checkpoint(base, adapter))}
    save_adapter(adapter, load_file_without_prefix(adapter), lora_alpha=8)
    seen.add(Checkpoint(base, adapter).digest(Progress()))
    save_adapter(adapter, factors(Q, 64, 64))
    seen.add(Checkpoint(base, adapter).digest(Progress()))
    assert len(seen) == 4


def load_file_without_prefix(adapter):
    return {name.removeprefix(PREFIX): one for name, one in load_file(adapter / "adapter_model.safetensors").items()}


def test_another_process_opens_the_adapter_too(tmp_path, base):
    adapter = save_adapter(tmp_path / "adapter", factors(Q, 64, 64))
    function, arguments = Checkpoint(base, adapter).__reduce__()
    assert function(*arguments).adapted == {f"{Q}.weight"}
    replaced = Checkpoint(base, adapter).replacing({"model.norm.weight": torch.zeros(64)})
    assert replaced.adapted == {f"{Q}.weight"}


def test_a_plan_takes_an_adapter(tmp_path, base):
    with pytest.raises(UserError, match=r"--adapter .*: is no directory"):
        plan(str(base), adapter=tmp_path / "none")
