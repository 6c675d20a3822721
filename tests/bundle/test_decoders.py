"""Every architecture that bundles run, in C: against transformers with the same weights, past windows, step by step."""

import numpy as np
import pytest

from skim_export.bundle import memory

from ..tiny_decoders import cases
from ..tiny_models import VOCABULARY
from .models import SUPPORTED
from .native import bundle, logits

TOKENS = np.random.default_rng(3).integers(2, VOCABULARY, 72)
PROMPTS = (1, len(TOKENS))
BOUND = 5e-5  # two engines in float32


def relative_error(found, wanted):
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def check(case, directory, program, threads):
    """All tokens one by one, and at once."""
    expected = case.reference(TOKENS)
    for prompt in PROMPTS:
        found = logits(program, directory, TOKENS, prompt, threads)
        for step, (got, want) in enumerate(zip(found, expected[prompt - 1 :], strict=True)):
            assert relative_error(got, want) < BOUND, f"prompt of {prompt} tokens, step {step}"


@pytest.mark.covers("bundle")
@pytest.mark.parametrize("name", cases(SUPPORTED, "qwen3", "gemma3", "phi3"))
def test_logits(name, exported, bundles, logits_program):
    case = exported(name)
    directory = bundles(case.directory)
    check(case, directory, logits_program(directory), threads=2)


@pytest.mark.parametrize("name", cases(["gemma2", "granite", "olmo2"], "gemma2"))
def test_wide_values_are_shared_out_by_column(name, exported, logits_program, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "NARROW", 0)
    case = exported(name)
    directory = bundle(case.directory, tmp_path)
    check(case, directory, logits_program(directory), threads=3)


@pytest.mark.parametrize(
    ("name", "sanitizers", "narrow"),
    [
        pytest.param("qwen3", "memory", memory.NARROW, marks=pytest.mark.slow),
        ("olmo2", "threads", memory.NARROW),
        pytest.param("gemma2", "threads", 0, marks=pytest.mark.slow),
    ],
)
def test_sanitizers_find_nothing(name, sanitizers, narrow, exported, logits_program, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "NARROW", narrow)
    case = exported(name)
    directory = bundle(case.directory, tmp_path)
    found = logits(logits_program(directory, sanitizers), directory, TOKENS, len(TOKENS) - 4, 3)
    assert relative_error(found, case.reference(TOKENS)[-5:]) < BOUND
