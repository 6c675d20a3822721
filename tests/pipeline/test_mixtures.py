"""Mixtures of experts: how they are stored, what single experts are given, and what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from skim_export import export
from skim_export.calibration import LinearStatistics
from skim_export.calibration.calibrate_model import warn_of_seldom_experts
from skim_export.calibration.statistics_store import StatisticsStore
from skim_export.checkpoint import Model, linear_weight
from skim_export.graph.reader import read_packed
from skim_runtime.errors import UserError

from ..tiny_decoders import tiny_decoder


@pytest.fixture
def checkpoint(tmp_path):
    return tiny_decoder("qwen3-moe", tmp_path / "hf")


def experts(model, name="model.layers.2.mlp.experts"):
    found = [linear for linear in model.architecture.linears if linear.name.startswith(name)]
    return [linear_weight(model.checkpoint, linear) for linear in found]


def test_experts_stored_as_one_tensor(checkpoint, tmp_path):
    """As transformers has them in memory, and some publish them."""
    file = checkpoint / "model.safetensors"
    apart = Model.open(checkpoint)
    wanted, tensors = experts(apart), load_file(file)
    for layer in (0, 2):
        prefix = f"model.layers.{layer}.mlp.experts"
        parts = {
            part: torch.stack([tensors.pop(f"{prefix}.{e}.{part}.weight") for e in range(6)])
            for part in ("gate_proj", "up_proj", "down_proj")
        }
        tensors[f"{prefix}.gate_up_proj"] = torch.cat([parts["gate_proj"], parts["up_proj"]], dim=1)
        tensors[f"{prefix}.down_proj"] = parts["down_proj"]
    save_file(tensors, file, {"format": "pt"})
    together = Model.open(checkpoint)
    assert together.checkpoint.names == apart.checkpoint.names
    for one, other in zip(experts(together), wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    rows = together.checkpoint.tensor(f"{prefix}.5.up_proj.weight", slice(3, 7))
    np.testing.assert_array_equal(rows.numpy(), wanted[1][5 * 32 + 3 : 5 * 32 + 7])


def test_names_of_mixtral(tmp_path):
    """Its files say w1, w2 and w3, and block_sparse_moe."""
    path = tiny_decoder("mixtral", tmp_path)
    stored = load_file(path / "model.safetensors")
    assert "model.layers.0.block_sparse_moe.experts.4.w2.weight" in stored
    gate, up, down = experts(Model.open(path), "model.layers.0.mlp.experts")
    for name, found in (("w1", gate), ("w3", up), ("w2", down)):
        wanted = torch.cat([stored[f"model.layers.0.block_sparse_moe.experts.{e}.{name}.weight"] for e in range(5)])
        np.testing.assert_array_equal(found, wanted.numpy())


def test_a_width_for_some_experts(checkpoint, tmp_path):
    output = tmp_path / "out" / "model.onnx"
    export(str(checkpoint), output, bits=3, effort="weights", keep={"2.mlp.experts.3.*": 6}, threads=1)
    packed = read_packed(output)
    for part in ("gate_proj", "up_proj", "down_proj"):
        of_layer = packed[f"model.layers.2.mlp.experts.{part}"]
        bits = of_layer.row_classes().reshape(6, -1) % 8 + 1
        assert (bits[3] == 6).all()
        assert (bits[[0, 1, 2, 4, 5]] != 6).all()
    average = np.average(
        [packed[linear.name].code_bits for linear in Model.open(checkpoint).architecture.linears],
        weights=[linear.out_features * linear.in_features for linear in Model.open(checkpoint).architecture.linears],
    )
    assert average == pytest.approx(3, abs=0.05)


def test_what_is_refused(checkpoint, tmp_path):
    output = tmp_path / "out" / "model.onnx"
    with pytest.raises(UserError, match=r"--exclude \*\.experts\.2\.\*: matches experts, which have no products"):
        export(str(checkpoint), output, exclude=["*.experts.2.*"])
    with pytest.raises(UserError, match="--ep cuda: mixtures of experts run on the CPU alone so far"):
        export(str(checkpoint), output, ep="cuda")
    config = checkpoint / "config.json"
    entries = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps({**entries, "hidden_act": "gelu"}), "utf-8")
    with pytest.raises(UserError, match=r"experts with the activation gelu are not supported; silu is"):
        export(str(checkpoint), output)
    assert not output.parent.exists()


def test_experts_that_the_text_hardly_reached_are_counted(checkpoint, tmp_path):
    architecture, store = Model.open(checkpoint).architecture, StatisticsStore(tmp_path)
    one = np.ones(1, np.float32)
    for linear in architecture.linears:
        tokens = np.array([64, 63, 0, 900, 1, 64]) if linear.of_experts else None
        store.write(linear.name, LinearStatistics(one, one, one, expert_tokens=tokens))
    with pytest.warns(
        UserWarning, match="6 of 12 experts were given fewer than 64 tokens of .* text, 2 of them none: "
    ):
        warn_of_seldom_experts(architecture, store)
