import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from skim_export import TorchReference
from skim_runtime import Session, UserError, evaluate
from skim_runtime.evaluation import perplexity_error
from skim_runtime.progress import Progress

TOKENS = np.random.default_rng(4).integers(2, 300, 150).tolist()
CONTEXT = 64


class Shifted:
    """The logits of a model, and a little more: a reference that is not quite the model."""

    def __init__(self, model, vocabulary=320):
        noise = np.random.default_rng(5).normal(0, 0.3, vocabulary).astype(np.float32)
        self.logits = lambda tokens: model.logits(tokens)[:, :vocabulary] + noise


@pytest.fixture(scope="module")
def session(fp32):
    return Session(fp32)


def losses_of_torch(hf):
    """Losses `[tokens]` and log probabilities `[tokens, V]` of windows, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    losses, log_p = [], []
    for start in range(0, len(TOKENS), CONTEXT):
        window = torch.tensor([TOKENS[start : start + CONTEXT]])
        with torch.no_grad():
            log = torch.log_softmax(model(window).logits[0, :-1].double(), -1)
        losses.append(-log[torch.arange(len(log)), window[0, 1:]])
        log_p.append(log)
    return torch.cat(losses), torch.cat(log_p)


def test_perplexity_is_that_of_torch(hf, session):
    losses, _ = losses_of_torch(hf)
    evaluation = evaluate(session, TOKENS, context=CONTEXT)
    assert evaluation.tokens == len(losses) == 147  # three windows, each but its first token
    assert evaluation.context == CONTEXT
    assert evaluation.perplexity == pytest.approx(losses.mean().exp().item(), rel=1e-5)
    assert evaluation.perplexity_error == pytest.approx(
        (losses.mean().exp() * losses.std() / len(losses) ** 0.5).item(), rel=1e-4
    )
    assert evaluation.reference_perplexity is None
    assert evaluation.reference_perplexity_error is None
    assert evaluation.kl_mean is None


def test_an_exact_export_does_not_differ_from_torch(hf, session):
    evaluation = evaluate(session, TOKENS, reference=hf, context=CONTEXT)
    assert evaluation.reference_perplexity == pytest.approx(evaluation.perplexity, rel=1e-5)
    assert evaluation.reference_perplexity_error == pytest.approx(evaluation.perplexity_error, rel=1e-4)
    assert abs(evaluation.kl_mean) < 1e-8
    assert evaluation.top1_agreement == 1


def test_divergence_is_the_definition(hf, session):
    _, log_q = losses_of_torch(hf)
    reference = Shifted(session)
    log_p = []
    for start in range(0, len(TOKENS), CONTEXT):
        logits = reference.logits(TOKENS[start : start + CONTEXT])[:-1]
        log_p.append(torch.log_softmax(torch.from_numpy(logits).double(), -1))
    log_p = torch.cat(log_p)
    kl = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    evaluation = evaluate(session, TOKENS, reference=reference, context=CONTEXT)
    assert kl.mean() > 0.01
    assert evaluation.kl_mean == pytest.approx(kl.mean().item(), rel=1e-4)
    assert evaluation.kl_p99 == pytest.approx(torch.quantile(kl, 0.99).item(), rel=1e-4)
    agreement = (log_p.argmax(-1) == log_q.argmax(-1)).double().mean().item()
    assert evaluation.top1_agreement == pytest.approx(agreement)
    assert 0 < agreement < 1


def test_the_reference_may_be_an_exported_directory(packed, session, fp32):
    evaluation = evaluate(Session(packed), TOKENS, reference=str(fp32), context=CONTEXT)
    assert evaluation.reference_perplexity == pytest.approx(evaluate(session, TOKENS, context=CONTEXT).perplexity)
    assert evaluation.kl_mean > 0.01


def test_the_error_of_a_perplexity_is_its_spread_over_texts():
    """Texts whose losses share a part in each window: tokens counted as independent would give a third of the error."""
    random = np.random.default_rng(0)
    found, errors, naive = [], [], []
    for _ in range(400):
        losses = [2 + random.normal(0, 0.5) + random.normal(0, 1, size) for size in [40] * 19 + [7]]
        found.append(np.exp(np.concatenate(losses).mean()))
        errors.append(perplexity_error(losses))
        naive.append(perplexity_error([np.concatenate(losses)]))
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.15)
    assert np.mean(naive) < 0.5 * np.std(found)


def test_one_loss_has_no_error():
    assert perplexity_error([np.array([1.0])]) is None


def test_a_text_is_tokenized_without_bos(session, fp32):
    from skim_runtime import Tokenizer

    text = "The quick brown fox. " * 20
    assert evaluate(session, text, context=CONTEXT) == evaluate(session, Tokenizer(fp32).encode(text), context=CONTEXT)


def test_max_tokens_cuts_the_text(session):
    assert evaluate(session, TOKENS, context=CONTEXT, max_tokens=70) == evaluate(session, TOKENS[:70], context=CONTEXT)


def test_a_last_window_of_one_token_predicts_nothing(session):
    assert evaluate(session, TOKENS[:65], context=CONTEXT) == evaluate(session, TOKENS[:64], context=CONTEXT)


def test_progress_counts_the_windows(session):
    class Recorder(Progress):
        events = ()

        def start(self, stage, total):
            self.events += ((stage, total),)

        def step(self, done):
            self.events += (done,)

        def finish(self):
            self.events += ("finished",)

    recorder = Recorder()
    evaluate(session, TOKENS, context=CONTEXT, progress=recorder)
    assert recorder.events == (("evaluating", 3), "window 1", "window 2", "window 3", "finished")


def test_bad_options_are_refused(session):
    def message(text, **options):
        with pytest.raises(UserError) as error:
            evaluate(session, text, **options)
        return str(error.value)

    assert "the text has 0 tokens; at least 2 are needed" in message("", context=CONTEXT)
    assert "context must be from 2 to 512, the model's own, got 1024" in message(TOKENS, context=1024)
    assert "context must be from 2 to 512" in message(TOKENS, context=1)
    assert "tokens must be at least 2, got 1" in message(TOKENS, context=CONTEXT, max_tokens=1)
    other = Shifted(session, 300)
    assert "vocabulary of 300 tokens, the model 320" in message(TOKENS, context=CONTEXT, reference=other)


def test_a_reference_that_does_not_load_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        TorchReference.load(tmp_path)
