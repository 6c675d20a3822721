"""gpt-oss as it is published: experts in MXFP4, all else in bfloat16."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from skim_export import export
from skim_export.checkpoint import Checkpoint, Model, linear_bias, linear_weight
from skim_runtime.errors import UserError

from ..tiny_decoders import tiny_decoder

EXPERTS, HIDDEN, INNER = 6, 64, 64
AGAIN = "ignore:model .* is quantized already:UserWarning"


def published(path):
    """A tiny model with random codes for experts, and what transformers makes of them, by layer."""
    tiny_decoder("gpt-oss", path)
    file, config = path / "model.safetensors", path / "config.json"
    tensors, meant, rng = load_file(file), {}, np.random.default_rng(3)
    for name in [name for name in tensors if name.endswith((".gate_up_proj", ".down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        blocks = torch.from_numpy(rng.integers(0, 256, (experts, rows, columns // 32, 16)).astype(np.uint8))
        scales = torch.from_numpy(rng.integers(120, 126, (experts, rows, columns // 32)).astype(np.uint8))
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        meant[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    save_file(tensors, file, {"format": "pt"})
    entries = json.loads(config.read_text("utf-8"))
    entries["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    config.write_text(json.dumps(entries), "utf-8")
    return meant


@pytest.mark.filterwarnings(AGAIN)
def test_experts_are_what_transformers_makes_of_them(tmp_path):
    meant = published(tmp_path / "model")
    model = Model.open(tmp_path / "model")
    assert model.checkpoint.quantization == "mxfp4"
    biases = load_file(tmp_path / "model" / "model.safetensors")
    linears = {linear.name: linear for linear in model.architecture.linears}
    for layer in range(3):
        prefix = f"model.layers.{layer}.mlp.experts"
        gate_up, down = meant[f"{prefix}.gate_up_proj"], meant[f"{prefix}.down_proj"]  # inputs before outputs
        wanted = {
            "gate_proj": (gate_up[..., 0::2], biases[f"{prefix}.gate_up_proj_bias"][:, 0::2]),
            "up_proj": (gate_up[..., 1::2], biases[f"{prefix}.gate_up_proj_bias"][:, 1::2]),
            "down_proj": (down, biases[f"{prefix}.down_proj_bias"]),
        }
        for part, (weight, bias) in wanted.items():
            linear = linears[f"{prefix}.{part}"]
            found = linear_weight(model.checkpoint, linear)
            np.testing.assert_array_equal(found, weight.transpose(1, 2).flatten(0, 1).numpy())
            some = slice(INNER + 3, 3 * INNER)  # of the second and the third expert
            np.testing.assert_array_equal(linear_weight(model.checkpoint, linear, some), found[some])
            found_bias = linear_bias(model.checkpoint, linear)
            assert found_bias is not None
            np.testing.assert_array_equal(found_bias, bias.flatten().numpy())


@pytest.mark.filterwarnings(AGAIN)
def test_it_is_exported(tmp_path):
    published(tmp_path / "model")
    output = tmp_path / "out" / "model.onnx"
    report = export(str(tmp_path / "model"), output, bits=4, effort="weights", threads=1, check=True)
    assert report.error is not None
    assert report.error < 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, n: t.pop(f"{n}_scales"), r"has no tensor model\.layers\.0\.mlp\.experts\.down_proj_scales"),
        (lambda t, n: t.update({f"{n}_blocks": t[f"{n}_blocks"][..., :8].contiguous()}), r"expected \[6, 64, 2, 16\]"),
        (lambda t, n: t.update({f"{n}_scales": t[f"{n}_scales"][1:].contiguous()}), r"expected \[6, 64, 2\]"),
        (lambda t, n: t.update({f"{n}_blocks": t[f"{n}_blocks"].float()}), r"has type F32; expected U8"),
        (lambda t, n: t.update({n: torch.ones(6, 64, 64)}), "has two weights of"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_said(tmp_path, change, message):
    published(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    change(tensors, "model.layers.0.mlp.experts.down_proj")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match=message):
        Checkpoint(tmp_path / "model")
