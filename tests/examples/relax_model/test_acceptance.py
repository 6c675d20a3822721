"""SmolLM2-135M-Instruct, exported with the defaults, in Relax."""

import pytest

from skim_runtime import Session, Tokenizer, generate

from ...tools import require_packages

require_packages("tvm")
# ruff: noqa: E402

from relax_model.session import RelaxSession

from .running import TARGET, relative_error


@pytest.mark.slow
def test_smollm2_says_the_same_as_in_onnxruntime(smollm2_3bit):
    prompt = Tokenizer(smollm2_3bit).prompt("What is the capital of France?")
    relax, onnxruntime = RelaxSession.compile(smollm2_3bit, TARGET), Session(smollm2_3bit)
    # Both round activations to 16 bits: those that differ in the last bits of a float32 may be rounded to neighbours.
    assert relative_error(relax.step(prompt), onnxruntime.logits(prompt)) < 5e-3
    tokens = [generate(session, prompt, max_new_tokens=16, stop=()).tokens for session in (relax, onnxruntime)]
    assert tokens[0] == tokens[1]
