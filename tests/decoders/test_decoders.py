"""Every architecture against transformers: beyond windows and original contexts, and step by step."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from skim_export.pipeline.budget import rotary_values
from skim_runtime import GenaiSession, Session, generate

from ..tiny_decoders import DECODERS, cases
from ..tiny_models import VOCABULARY

TOKENS = np.random.default_rng(3).integers(2, VOCABULARY, 72)
BOUND = 2e-3
ALL = pytest.mark.parametrize("name", DECODERS)


def distance(found, wanted):
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def check_logits(case, kernel):
    session = Session(case.directory, threads=1, kernel=kernel)
    for length in (1, 20, len(TOKENS)):
        tokens = TOKENS[:length]
        assert distance(session.logits(tokens), case.reference(tokens)) < BOUND


@ALL
@pytest.mark.covers("onnx")
def test_logits(exported, name):
    check_logits(exported(name), "auto")


@pytest.mark.covers("function")
@pytest.mark.parametrize("name", cases(DECODERS, "phi3", "gemma4-e", "qwen3_5", "qwen3-moe"))
def test_logits_of_functions(exported, name):
    """By the definition of our operators in standard ones."""
    check_logits(exported(name), "function")


@ALL
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(Session, marks=pytest.mark.covers("onnx")),
        pytest.param(GenaiSession, marks=pytest.mark.covers("genai")),
    ],
)
def test_steps(exported, name, kind):
    """A prompt, single tokens and some more at once, against all of it at once."""
    case = exported(name)
    session, start = kind(case.directory, threads=1), 0
    session.reset(len(TOKENS))
    for length in (14, *[1] * 12, 9, *[1] * 20, len(TOKENS) - 55):
        found = session.step(TOKENS[start : start + length])
        start += length
        assert distance(found[-1], case.reference(TOKENS[:start])[-1]) < BOUND, start


@ALL
def test_size_of_rotary_tables(exported, name):
    """What a budget counts for them before there is a graph."""
    case = exported(name)
    graph = onnx.load(case.directory / "model.onnx", load_external_data=False).graph
    stored = sum(np.prod(tensor.dims) for tensor in graph.initializer if "_cache" in tensor.name)
    assert rotary_values(case.model, None) == stored


@pytest.mark.parametrize("name", ["phi3-long", "lfm2", "qwen3_5"])
@pytest.mark.parametrize("kind", [Session, GenaiSession])
def test_what_is_generated(exported, name, kind):
    """Beyond the length where rotary tables change, and from states that do not grow."""
    case, prompt = exported(name), TOKENS[:28].tolist()
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    wanted = case.network.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
    assert generate(kind(case.directory, threads=1), prompt, max_new_tokens=12, stop=()).tokens == wanted
