import numpy as np
import pytest

from skim_runtime import GenaiSession, Session, UserError, generate
from skim_runtime.generation import PROMPT_CHUNK

PROMPT = list(range(10, 40))


def test_greedy_takes_the_most_likely_token_each_time(fp32):
    session = Session(fp32, threads=1)
    generation = generate(session, PROMPT, max_new_tokens=20, stop=())
    tokens = list(PROMPT)
    for _ in range(20):
        tokens.append(int(session.logits(tokens)[-1].argmax()))
    assert generation.tokens == tokens[len(PROMPT) :]
    assert generation.prompt_tokens == len(PROMPT)
    assert generation.decode_tokens == 19
    assert not generation.stopped


@pytest.mark.parametrize("model", ["fp32", "packed", "packed_mistral"])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "seed": 5}])
def test_both_engines_generate_the_same(request, model, options):
    directory = request.getfixturevalue(model)
    ours = generate(Session(directory), PROMPT, max_new_tokens=40, stop=(), **options)
    theirs = generate(GenaiSession(directory), PROMPT, max_new_tokens=40, stop=(), **options)
    assert len(ours.tokens) == 40
    assert theirs.tokens == ours.tokens


def test_onnxruntime_genais_own_loop_generates_the_same(packed):
    import onnxruntime_genai as og

    model = og.Model(og.Config(str(packed)))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(PROMPT) + 30, min_length=len(PROMPT) + 30)
    generator = og.Generator(model, parameters)
    generator.append_tokens(PROMPT)
    while not generator.is_done():
        generator.generate_next_token()
    assert list(generator.get_sequence(0)) == PROMPT + generate(Session(packed), PROMPT, max_new_tokens=30).tokens


def test_sampling_follows_its_seed(fp32):
    session = Session(fp32)

    def sample(seed):
        return generate(session, PROMPT, max_new_tokens=30, temperature=1.5, seed=seed, stop=()).tokens

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_a_stop_token_ends_the_text_and_is_left_out(fp32):
    session = Session(fp32)
    free = generate(session, PROMPT, max_new_tokens=12, temperature=1.0, seed=3, stop=()).tokens
    stop = free[8]
    seen = []
    generation = generate(
        session, PROMPT, max_new_tokens=12, temperature=1.0, seed=3, stop={stop}, on_token=seen.append
    )
    assert generation.stopped
    assert generation.tokens == seen == free[: free.index(stop)]


def test_the_models_own_stop_token_is_the_default(fp32):
    session = Session(fp32)
    (eos,) = session.eos_token_ids

    class Ending:
        """The session, except that the fourth token is the end."""

        context_length, eos_token_ids, calls = session.context_length, session.eos_token_ids, 0

        def reset(self, capacity=0):
            session.reset(capacity)

        def step(self, input_ids):
            logits = session.step(input_ids)
            self.calls += 1
            if self.calls == 4:
                logits[-1, eos] = 1e6
            return logits

    generation = generate(Ending(), PROMPT, max_new_tokens=12)
    assert generation.stopped
    assert len(generation.tokens) == 3
    assert generation.decode_tokens == 3


def test_a_long_prompt_is_read_in_pieces(fp32, monkeypatch):
    session = Session(fp32)
    want = generate(session, PROMPT, max_new_tokens=8, stop=()).tokens
    monkeypatch.setattr("skim_runtime.generation.PROMPT_CHUNK", 7)
    sizes = []
    step = session.step
    monkeypatch.setattr(session, "step", lambda tokens: (sizes.append(len(tokens)), step(tokens))[1])
    assert generate(session, PROMPT, max_new_tokens=8, stop=()).tokens == want
    assert sizes == [7, 7, 7, 7, 2] + [1] * 7
    assert PROMPT_CHUNK > 7


def test_the_context_length_ends_the_text(fp32):
    prompt = [5] * 500
    session = Session(fp32)
    assert len(generate(session, prompt, max_new_tokens=100, stop=()).tokens) == 12


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([5] * 512, {}, "the prompt has 512 tokens, but the model's context only 512"),
        (PROMPT, {"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        (PROMPT, {"temperature": -1.0}, "temperature must be at least 0, got -1.0"),
        (PROMPT, {"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        (PROMPT, {"top_k": -1}, "top_k must be at least 0"),
        (PROMPT, {"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        (PROMPT, {"seed": -3}, "seed must be at least 0, got -3"),
    ],
)
def test_bad_options_are_refused(fp32, tokens, options, message):
    with pytest.raises(UserError) as error:
        generate(Session(fp32), tokens, **options)
    assert message in str(error.value)


def test_speeds_are_tokens_over_seconds(fp32):
    generation = generate(Session(fp32), PROMPT, max_new_tokens=5, stop=())
    assert generation.prompt_speed == len(PROMPT) / generation.prompt_seconds
    assert generation.decode_speed == 4 / generation.decode_seconds
    assert generate(Session(fp32), PROMPT, max_new_tokens=1, stop=()).decode_speed == 0


def test_logits_are_finite(packed):
    assert np.isfinite(Session(packed).logits(PROMPT)).all()
