"""Quantized checkpoints are read as if they held the floats that they mean; the others are refused in one line."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from skim_export import TorchReference, export
from skim_export.checkpoint import Checkpoint, Model
from skim_export.checkpoint.formats.numbers import unpack
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from .stored_weights import (
    WAYS,
    as_numpy,
    awq,
    compressed,
    edit_quantization,
    fp8,
    gptq,
    plain_llama,
    stored_llama,
    stream,
)
from .test_checkpoint import edit_tensors

GATE = "model.layers.0.mlp.gate_proj"
AGAIN = "ignore:model .* is quantized already:UserWarning"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return plain_llama(tmp_path_factory.mktemp("plain") / "model")


@pytest.mark.parametrize("bits", range(1, 9))
def test_numbers_come_out_of_words(bits):
    random = np.random.default_rng(bits)
    words = random.integers(-(2**31), 2**31, (3, 7)).astype(np.int32)
    want = [stream(row, bits, 7 * 32 // bits) for row in words]
    np.testing.assert_array_equal(unpack(torch.from_numpy(words), bits), want)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_weights_are_what_the_format_means(tmp_path, plain, way):
    meant = stored_llama(way, plain, tmp_path / "model")
    checkpoint = Checkpoint(tmp_path / "model")
    assert checkpoint.names == sorted(meant)
    assert checkpoint.parameter_count == sum(weight.size for weight in meant.values())
    checkpoint.check_values(Progress())
    for name, want in meant.items():
        assert checkpoint.shape(name) == want.shape
        found = checkpoint.tensor(name)
        assert found.dtype == torch.float32
        np.testing.assert_array_equal(found, want, err_msg=name)
        rows = want.shape[0]
        for start, stop in ((0, 5), (3, 40), (33, 34), (rows - 1, rows + 100), (7, 7)):
            np.testing.assert_array_equal(checkpoint.tensor(name, slice(start, stop)), want[start:stop])


@pytest.mark.parametrize("way", [awq(16), compressed("int-quantized", 8, "channel")])
def test_the_rest_sees_a_model_in_full_precision(tmp_path, plain, way):
    """An export has the bytes of one from the floats, and the user is told that they are not the best."""
    meant = stored_llama(way, plain, tmp_path / "model")
    floats = shutil.copytree(plain, tmp_path / "floats")
    save_file({name: torch.from_numpy(weight) for name, weight in meant.items()}, floats / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(str(floats), tmp_path / "a" / "model.onnx", bits=3, effort="weights", check=True)
    with pytest.warns(UserWarning, match=rf"model .* is quantized already \({way.config['quant_method']}"):
        export(str(tmp_path / "model"), tmp_path / "b" / "model.onnx", bits=3, effort="weights", check=True)
    for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    references = [TorchReference.load(path).logits([2, 3, 5, 7]) for path in (floats, tmp_path / "model")]
    np.testing.assert_allclose(*references, rtol=1e-5)


def test_groups_of_several_kinds(tmp_path, plain):
    """Modules find their group by name, by a pattern, or as what is left."""
    others = compressed("int-quantized", 8, "channel")
    meant = stored_llama(others, plain, path := tmp_path / "model")
    group = others.config["config_groups"]["group_0"]
    chosen, random = {}, np.random.default_rng(1)
    for target, way in {
        GATE: compressed("pack-quantized", 4, "group", size=8),
        "re:.*up_proj": compressed("float-quantized", 8, "channel", kind="float"),
    }.items():
        chosen[target] = {**way.config["config_groups"]["group_0"], "targets": [target], "format": way.config["format"]}
        module = GATE.replace("gate", "up") if target.startswith("re:") else GATE
        parts = way.store(random, *meant[f"{module}.weight"].shape)
        edit_tensors(path, **{f"{module}.weight": None, f"{module}.weight_scale": None})
        edit_tensors(path, **{f"{module}.{part}": value for part, value in parts.items()})
        meant[f"{module}.weight"] = way.decode({part: as_numpy(value) for part, value in parts.items()})
    groups = {"rest": {**group, "format": "int-quantized"}, **chosen}
    edit_quantization(path, format="mixed-precision", config_groups=groups)
    checkpoint = Checkpoint(path)
    for name, want in meant.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), want, err_msg=name)


@pytest.mark.filterwarnings(AGAIN)
def test_scales_of_activations_are_passed_over(tmp_path, plain):
    stored_llama(compressed("int-quantized", 8, "channel"), plain, path := tmp_path / "model")
    edit_tensors(path, **{f"{GATE}.input_scale": torch.ones(1), "model.layers.0.self_attn.k_scale": torch.ones(1)})
    Model.open(path)


@pytest.mark.parametrize(
    ("way", "changes", "message"),
    [
        (awq(16), {"scales": None}, f"has no tensor {GATE}.scales"),
        (awq(16), {"qzeros": None}, f"has no tensor {GATE}.qzeros"),
        (awq(16), {"scales": torch.ones(3, 64)}, "has shape [3, 64]; expected [2, 64]"),
        (awq(16), {"scales": torch.ones(2, 64, dtype=torch.int32)}, "has type I32; expected F64, F32, F16, BF16"),
        (awq(16), {"qweight": torch.ones(32, 8)}, "has type F32; expected I32"),
        (awq(16), {"qweight": torch.ones(8, dtype=torch.int32)}, "has shape [8]; expected a matrix"),
        (awq(16), {"qweight": torch.ones(0, 8, dtype=torch.int32)}, "has shape [0, 8]; expected a matrix"),
        (awq(16), {"weight": torch.ones(64, 32)}, "has two weights of"),
        (awq(16), {"scales": torch.full((2, 64), torch.inf)}, "holds NaN or infinity"),
        (gptq(4), {"qzeros": torch.ones(2, 9, dtype=torch.int32)}, "has shape [2, 9]; expected [2, 8]"),
        (gptq(4, order="act"), {"g_idx": None}, f"has no tensor {GATE}.g_idx"),
        (gptq(4), {"g_idx": torch.full((32,), 2, dtype=torch.int32)}, "names group 2; there are 0 to 1"),
        (gptq(4), {"g_idx": torch.arange(32, dtype=torch.int32) - 3}, "names group -3; there are 0 to 1"),
        (gptq(4), {"g_idx": torch.zeros(31, dtype=torch.int32)}, "has shape [31]; expected [32]"),
        (fp8((16, 16)), {"weight_scale_inv": None}, f"has no tensor {GATE}.weight_scale_inv"),
        (fp8((16, 16)), {"weight_scale_inv": torch.tensor(1.0)}, "has shape []; expected [4, 2]"),
        (fp8("tensor"), {"weight_scale_inv": torch.ones(2)}, "has shape [2]; expected [1, 1] or [1] or []"),
        (fp8("tensor"), {"weight": torch.ones(64, 32).to(torch.float8_e5m2)}, "has type F8_E5M2; expected F8_E4M3"),
        (
            compressed("pack-quantized", 4, "group", size=16),
            {"weight_shape": torch.tensor([64, 320])},
            "has shape [64, 4]; expected [64, 40]",
        ),
        (
            compressed("pack-quantized", 4, "group", size=16),
            {"weight_shape": torch.tensor([0, 32])},
            "is [0, 32]; expected rows and columns",
        ),
        (
            compressed("pack-quantized", 4, "group", size=16, symmetric=False),
            {"weight_zero_point": None},
            f"has no tensor {GATE}.weight_zero_point",
        ),
        (
            compressed("float-quantized", 8, "channel", kind="float"),
            {"weight": torch.ones(64, 32, dtype=torch.int8)},
            "has type I8; expected F8_E4M3",
        ),
    ],
)
@pytest.mark.filterwarnings(AGAIN)
def test_what_is_wrong_with_a_tensor_is_said(tmp_path, plain, way, changes, message):
    stored_llama(way, plain, path := tmp_path / "model")
    edit_tensors(path, **{f"{GATE}.{part}": tensor for part, tensor in changes.items()})
    with pytest.raises(UserError) as caught:
        Model.open(path).checkpoint.check_values(Progress())
    assert message in str(caught.value)
    assert GATE in str(caught.value)


PACKED = compressed("pack-quantized", 4, "group", size=16)


def _group(**weights):
    group = PACKED.config["config_groups"]["group_0"]
    return {"config_groups": {"group_0": {**group, "weights": {**group["weights"], **weights}}}}


@pytest.mark.parametrize(
    ("way", "entries", "message"),
    [
        (awq(16), {"bits": 8}, "bits is 8; can be read: 4"),
        (awq(16), {"bits": 0}, "bits is 0; can be read: 4"),
        (awq(16), {"version": "gemv"}, "version is 'gemv'; can be read: gemm"),
        (awq(16), {"group_size": 0}, "group_size is 0; expected a whole number from 1"),
        (awq(16), {"group_size": None}, "group_size is None; expected a whole number from 1"),
        (gptq(4), {"bits": 0}, "bits is 0; can be read: 2, 3, 4, 8"),
        (gptq(4), {"bits": True}, "bits is True; can be read: 2, 3, 4, 8"),
        (gptq(4), {"bits": [4]}, "bits is [4]; can be read: 2, 3, 4, 8"),
        (gptq(4), {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; can be read: gptq, gptq_v2"),
        (gptq(4), {"dynamic": {"+:.*up_proj": {"bits": 8}}}, "modules of other widths cannot be read"),
        (gptq(4), {"dynamic": 4}, "dynamic is 4; expected a JSON object"),
        (fp8((16, 16)), {"weight_block_size": [0, 32]}, "is [0, 32]; expected two whole numbers from 1"),
        (fp8((16, 16)), {"weight_block_size": 32}, "is 32; expected two whole numbers from 1"),
        (PACKED, {"format": "marlin-24"}, "format is 'marlin-24'; can be read: pack-quantized, int-quantized"),
        (PACKED, {"format": "nvfp4-pack-quantized"}, "format is 'nvfp4-pack-quantized'; can be read: pack-quantized"),
        (PACKED, {"quantization_status": "frozen"}, "quantization_status is 'frozen'; can be read: compressed"),
        (PACKED, {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config.format is 'sparse-24-bitmask'"),
        (PACKED, {"transform_config": {"R1": {}}}, "models with transforms cannot be read"),
        (PACKED, {"config_groups": {}}, "expected groups with weights"),
        (PACKED, {"config_groups": {"a": 1}}, "config_groups.a is 1; expected a JSON object"),
        (PACKED, {"config_groups": {"a": {"targets": "Linear"}}}, "targets is 'Linear'; expected a list of names"),
        (PACKED, {"config_groups": {"a": {"targets": ["re:("]}}}, "is no regular expression"),
        (PACKED, _group(num_bits=0), "weights.num_bits is 0; expected a whole number from 1"),
        (PACKED, _group(num_bits=3), "weights.num_bits is 3; can be read: 4, 8"),
        (PACKED, _group(type="float"), "weights.type is 'float'; can be read: int"),
        (PACKED, _group(group_size=-1), "weights.group_size is -1; expected a whole number from 1"),
        (PACKED, _group(strategy="token"), "weights.strategy is 'token'; can be read: tensor, channel, group, block"),
        (PACKED, _group(strategy="block"), "weights.block_structure is None; expected two whole numbers from 1"),
        *(
            (PACKED, {"quant_method": method}, f"cannot be read ({method}, as config.json says); can be read: awq, ")
            for method in ("bitsandbytes", "hqq", "aqlm", "nvfp4", "exl2", "fbgemm_fp8", ["awq"])
        ),
        (PACKED, {"quant_method": None}, "cannot be read (unknown method, as config.json says)"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_named(tmp_path, plain, way, entries, message):
    stored_llama(way, plain, path := tmp_path / "model")
    edit_quantization(path, **entries)
    with pytest.raises(UserError) as caught:
        Checkpoint(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_module_of_no_group(tmp_path, plain):
    stored_llama(PACKED, plain, path := tmp_path / "model")
    group = PACKED.config["config_groups"]["group_0"]
    edit_quantization(path, config_groups={"a": {**group, "targets": ["re:.*up_proj"]}})
    with pytest.raises(UserError, match=r"no group of quantization_config\.config_groups is for model\.layers\.0"):
        Checkpoint(path)


def test_a_configuration_that_no_tensor_follows(tmp_path, plain):
    path = shutil.copytree(plain, tmp_path / "model")
    edit_quantization(path, **gptq(4).config)
    with pytest.raises(UserError, match=r"has quantization_config \(gptq, 4 bits\), but no tensor is stored so"):
        Checkpoint(path)


@pytest.mark.filterwarnings(AGAIN)
def test_modules_that_were_left_out(tmp_path, plain):
    stored_llama(gptq(4), plain, path := tmp_path / "model")
    weight = torch.randn(64, 32)
    edit_tensors(path, **{f"{GATE}.{part}": None for part in ("qweight", "qzeros", "scales")})
    edit_tensors(path, **{f"{GATE}.weight": weight})
    edit_quantization(path, dynamic={"-:.*gate_proj": {}})
    assert torch.equal(Model.open(path).checkpoint.tensor(f"{GATE}.weight"), weight)
    assert f"{GATE}.weight" in load_file(path / "model.safetensors")
    assert "quantization_config" in json.loads((path / "config.json").read_text())
