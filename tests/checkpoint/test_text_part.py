"""Models with more than a text model inside: the text model alone is read, and means the same."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from skim_export.calibration.streaming import StreamedModel
from skim_export.checkpoint import Model
from skim_export.pipeline.proof import prove

from ..tiny_decoders import DECODERS, SIZES
from ..tiny_models import tiny_tokenizer

VISION = {"hidden_size": 32, "intermediate_size": 32}
IMAGE = {**VISION, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
# By the case of the text model: the class, and what its configuration has beside it.
WHOLE = {
    "gemma3": ("Gemma3ForConditionalGeneration", {"vision_config": IMAGE, "mm_tokens_per_image": 4}),
    "gemma4-e": ("Gemma4ForConditionalGeneration", {"vision_config": IMAGE, "audio_config": None}),
    "gemma4-unified": ("Gemma4UnifiedForConditionalGeneration", {"vision_config": {"mm_embed_dim": 64}}),
    "ministral3": ("Mistral3ForConditionalGeneration", {"vision_config": {"model_type": "pixtral", **IMAGE}}),
    "qwen3_5": (
        "Qwen3_5ForConditionalGeneration",
        {
            "vision_config": {
                **VISION,
                "depth": 1,
                "num_heads": 2,
                "out_hidden_size": 64,
                "num_position_embeddings": 16,
            }
        },
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_text_model_means_the_same(tmp_path, name):
    class_name, more = WHOLE[name]
    text_class, entries = DECODERS[name]
    text = getattr(transformers, text_class).config_class(**{**SIZES, **entries})
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    network = model_class(model_class.config_class(text_config=text.to_dict(), **more)).eval()
    network.save_pretrained(tmp_path)
    tiny_tokenizer(tmp_path)

    model = Model.open(tmp_path)
    assert model.architecture.name == text_class
    prove(model)
    tokens = torch.arange(2, 60)[None]
    with torch.no_grad():
        wanted = network(input_ids=tokens).logits
        found = StreamedModel(model).load_all()(input_ids=tokens).logits
    assert torch.equal(found, wanted)


def test_a_quantization_that_the_text_model_alone_has_is_read(tmp_path):
    """Some config.json have it within text_config."""
    class_name, more = WHOLE["gemma3"]
    text_class, entries = DECODERS["gemma3"]
    text = getattr(transformers, text_class).config_class(**{**SIZES, **entries})
    model_class = getattr(transformers, class_name)
    model_class(model_class.config_class(text_config=text.to_dict(), **more)).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text("utf-8"))
    config["text_config"]["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    file.write_text(json.dumps(config), "utf-8")
    name = "language_model.model.layers.0.mlp.down_proj.weight"
    tensors = load_file(tmp_path / "model.safetensors")
    codes = torch.randn(tensors[name].shape).to(torch.float8_e4m3fn)
    steps = torch.full([size // 16 for size in codes.shape], 0.5)
    save_file({**tensors, name: codes, f"{name}_scale_inv": steps}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.warns(UserWarning, match=r"is quantized already \(fp8"):
        model = Model.open(tmp_path)
    assert "quantization_config" not in model.checkpoint.raw_config
    read = model.checkpoint.tensor("model.layers.0.mlp.down_proj.weight")
    assert torch.equal(read, codes.float() / 2)
