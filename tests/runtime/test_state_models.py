"""Decoders of other kinds as onnxruntime-genai's builder writes them, compared with transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Lfm2Config,
    Lfm2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5TextConfig,
)

from skim_runtime import GenaiSession, Session, evaluate, generate

from ..tiny_models import VOCABULARY, tiny_tokenizer
from .conftest import build

TOKENS = np.random.default_rng(0).integers(2, VOCABULARY, 80)
PARTS = [TOKENS[:30], *TOKENS[30:40, None], TOKENS[40:42], TOKENS[42:79], TOKENS[79:]]
SWITCH = 64  # of Phi-3
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "initializer_range": 0.15,
}


def lfm2():
    layers = ["conv", "full_attention", "conv"]
    return Lfm2ForCausalLM(Lfm2Config(**SIZES, num_hidden_layers=3, layer_types=layers, block_auto_adjust_ff_dim=False))


def qwen3_5():
    layers = ["linear_attention", "full_attention", "linear_attention"]
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    text = Qwen3_5TextConfig(
        **SIZES,
        num_hidden_layers=3,
        layer_types=layers,
        head_dim=32,
        rope_parameters={**rope, "mrope_section": [4, 2, 2], "mrope_interleaved": True},
        linear_key_head_dim=16,
        linear_value_head_dim=32,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    )
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text.to_dict(), vision_config=vision))


def phi3():
    factors = {"short_factor": np.linspace(1, 1.4, 8).tolist(), "long_factor": np.linspace(1, 6, 8).tolist()}
    rope = {"rope_type": "longrope", "type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": SWITCH}
    return Phi3ForCausalLM(
        Phi3Config(
            **SIZES,
            num_hidden_layers=2,
            original_max_position_embeddings=SWITCH,
            rope_parameters={**rope, **factors},
        )
    )


@pytest.fixture(scope="module", params=[lfm2, qwen3_5, phi3], ids=lambda make: make.__name__)
def models(request, tmp_path_factory):
    """The model for torch, and the directory of its graph."""
    path: Path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = request.param()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(path / "hf")
    tiny_tokenizer(path / "hf")
    kind = AutoModelForImageTextToText if hasattr(model.config, "vision_config") else AutoModelForCausalLM
    reference = kind.from_pretrained(path / "hf", dtype=torch.float32).eval()
    return reference, build(path / "hf", path / "onnx", "fp32", "cpu")


def expected(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens)[None]).logits[0].numpy()


def assert_close(got, want):
    assert np.linalg.norm(got - want) < 2e-5 * np.linalg.norm(want)


def test_logits_are_those_of_transformers(models):
    model, directory = models
    session, genai = Session(directory, threads=1), GenaiSession(directory, threads=1)
    assert_close(session.logits(TOKENS), expected(model, TOKENS))
    for capacity in (0, 200):
        session.reset(capacity)
        genai.reset(capacity)
        total = 0
        for part in PARTS:
            total += len(part)
            want = expected(model, TOKENS[:total])[-len(part) :]
            assert_close(session.step(part), want)
            assert_close(genai.step(part), want[-1:])


def test_what_is_generated(models):
    """By transformers and by both engines, beyond the length where Phi-3 changes its rotary tables."""
    model, directory = models
    prompt = TOKENS[: SWITCH - 4].tolist()
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    want = model.generate(torch.tensor(prompt)[None], **options)[0, len(prompt) :].tolist()
    for kind in (Session, GenaiSession):
        assert generate(kind(directory), prompt, max_new_tokens=12, stop=()).tokens == want


def test_what_is_evaluated(models):
    model, directory = models
    session = Session(directory, threads=1)
    found = evaluate(session, TOKENS.tolist(), context=40)
    losses = []
    for window in (TOKENS[:40], TOKENS[40:]):
        logits = torch.tensor(expected(model, window)[:-1])
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(window[1:]), reduction="none"))
    assert found.perplexity == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-4)
