"""What single models of an architecture have, and others have not."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from skim_export.checkpoint import Model
from skim_export.pipeline.budget import unpacked_parameters
from skim_runtime.errors import UserError

from ..tiny_decoders import tiny_decoder

EXPERTS = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}


def test_mixtures_are_refused(tmp_path):
    message = r"experts \(model\.layers\.0\.experts\.\S+\), and mixtures in this architecture are not supported"
    with pytest.raises(UserError, match=message):
        Model.open(tiny_decoder("gemma4", tmp_path, **EXPERTS))


def test_a_size_of_a_single_layer_is_checked(tmp_path):
    path = tiny_decoder("gemma4", tmp_path)
    file = path / "config.json"
    text = file.read_text("utf-8")
    assert text.count('"head_dim": 32') == 1
    file.write_text(text.replace('"head_dim": 32', '"head_dim": 320000'), "utf-8")
    with pytest.raises(UserError, match="head_dim must be a whole number from 1 to 65536, is 320000"):
        Model.open(path)


def test_tensors_that_no_layer_uses(tmp_path):
    """Files of Gemma 4 hold keys and values of layers that use those of others; they are no part of the model."""
    path = tiny_decoder("gemma4-e", tmp_path)
    before = unpacked_parameters(Model.open(path))
    file = path / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "model.layers.3.self_attn.k_proj.weight": torch.zeros(16, 64)}, file, {"format": "pt"})
    assert unpacked_parameters(Model.open(path)) == before
    save_file({**tensors, "model.layers.3.self_attn.z_proj.weight": torch.zeros(16, 64)}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"the tensor model\.layers\.3\.self_attn\.z_proj\.weight, which is no part"):
        Model.open(path)


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        (
            "gemma4-e",
            {"vocab_size_per_layer_input": 300},
            "per_layer_input is 300, fewer than vocab_size: 320",
        ),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers has 2 values, num_hidden_layers is 4"),
        ("lfm2", {"conv_L_cache": 1}, "conv_L_cache must be a whole number from 2 to 1024, is 1"),
        (
            "qwen3_5",
            {"linear_conv_kernel_dim": 1},
            "linear_conv_kernel_dim must be a whole number from 2",
        ),
        (
            "olmo2",
            {"architectures": ["LlamaForCausalLM"]},
            "the architecture LlamaForCausalLM, but its model_type 'olmo2' is that of Olmo2ForCausalLM",
        ),
    ],
)
def test_an_entry_that_no_graph_can_follow_is_named(tmp_path, name, entries, message):
    file = tiny_decoder(name, tmp_path) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **entries}), "utf-8")
    with pytest.raises(UserError, match=message):
        Model.open(tmp_path)
