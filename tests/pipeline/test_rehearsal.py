"""What would fail after hours of work fails before it: tokenizers, tokens and contexts that don't fit the model."""

import json

import numpy as np
import onnx
import pytest
from transformers import AutoTokenizer

from skim_export import export
from skim_export.cli.main import main
from skim_export.pipeline.export import prepare
from skim_export.pipeline.options import ExportOptions
from skim_runtime import Session, UserError, generate

from ..tiny_models import VOCABULARY, tiny_llama

QUICK = ExportOptions(bits=3, effort="weights")
CONTEXT = 100


def edit(path, name, **entries):
    """Replace entries of a JSON file."""
    content = {**json.loads((path / name).read_text()), **entries}
    (path / name).write_text(json.dumps(content))


@pytest.fixture
def model(tmp_path):
    return tiny_llama(tmp_path / "model", layers=1)


@pytest.fixture
def longer(model):
    """Its tokenizer has a token that the embedding has not."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([f"<extra{i}>" for i in range(VOCABULARY - len(tokenizer) + 2)])
    tokenizer.save_pretrained(model)
    return model


def refusal(model, options=QUICK):
    output = model.parent / "out" / "model.onnx"
    with pytest.raises(UserError) as error:
        prepare(str(model), output, options)
    assert not output.parent.exists()
    return str(error.value)


def without_end(model):
    """Nothing of the model says which token ends a text."""
    for file in ("config.json", "generation_config.json"):
        edit(model, file, eos_token_id=None)
    edit(model, "tokenizer_config.json", eos_token=None, pad_token=None)


def test_no_token_ends_a_text(model):
    without_end(model)
    assert "Could not resolve eos_token_id" in refusal(model)


@pytest.mark.parametrize("number", [VOCABULARY, 1 << 31])
def test_the_token_that_ends_a_text_is_none_of_the_models(model, number):
    edit(model, "tokenizer_config.json", eos_token=None, pad_token=None)
    for file in ("config.json", "generation_config.json"):
        edit(model, file, eos_token_id=number)
    assert "eos_token_id" in refusal(model)
    assert str(number) in refusal(model)


def test_a_tokenizer_that_cannot_be_saved(model):
    (model / "chat_template.jinja").unlink()
    edit(model, "tokenizer_config.json", chat_template="half of a character: \ud800")
    assert "makes no configuration of it" in refusal(model)


def test_planning_refuses_the_same(model, capsys):
    without_end(model)
    assert main(["plan", "--model", str(model)]) == 2
    assert "Could not resolve eos_token_id" in capsys.readouterr().err


def test_the_model_writes_a_text_without_an_end(model, tmp_path):
    edit(model, "tokenizer_config.json", eos_token=None)
    output = tmp_path / "out" / "model.onnx"
    export(str(model), output, bits=3)
    assert Session(output.parent).eos_token_ids == (1,)


def test_tokens_that_the_model_has_not(longer, tmp_path):
    """A warning; it neither writes nor reads them, and a text that has them is refused."""
    with pytest.warns(UserWarning, match=r"the token '<extra0>' \(320\) and 1 more, but .* ends at 319"):
        export(str(longer), tmp_path / "out" / "model.onnx", bits=3)
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox <extra1> jumps over the lazy dog. " * 4000)
    with (
        pytest.warns(UserWarning, match="<extra0>"),
        pytest.raises(UserError, match=r"--calib .*text\.txt: holds the token '<extra1>' \(321\), but .* ends at 319"),
    ):
        export(str(longer), tmp_path / "other" / "model.onnx", bits=3, calib=text)


def test_a_shorter_context(model, tmp_path):
    """The rotary tables end with it, and the model is the same up to there."""
    whole, short = tmp_path / "whole" / "model.onnx", tmp_path / "short" / "model.onnx"
    export(str(model), whole, QUICK)
    export(str(model), short, QUICK, context=CONTEXT)
    tables = {t.name: list(t.dims) for t in onnx.load(short).graph.initializer if t.name.endswith("_cache")}
    assert tables == {"cos_cache": [CONTEXT, 8], "sin_cache": [CONTEXT, 8]}
    tokens = np.arange(2, 2 + CONTEXT)
    np.testing.assert_array_equal(Session(short.parent).logits(tokens), Session(whole.parent).logits(tokens))
    session = Session(short.parent)
    assert session.context_length == CONTEXT
    with pytest.raises(UserError, match=f"the prompt has {CONTEXT} tokens, but the model's context only {CONTEXT}"):
        generate(session, tokens.tolist())


def test_a_longer_context_than_the_models(model):
    assert "--context 513: the model was made for 512 positions at most" in refusal(
        model, ExportOptions(bits=3, context=513)
    )
    with pytest.raises(UserError, match="--context 1: must be at least 2"):
        ExportOptions(context=1)


def test_an_entry_that_transformers_ignores_is_no_context(model, tmp_path):
    edit(model, "config.json", seq_length=64)
    export(str(model), tmp_path / "out" / "model.onnx", QUICK)
    assert Session(tmp_path / "out").context_length == 512


def test_rotary_tables_take_memory(tmp_path):
    """Of many positions; the message says how there are fewer."""
    model = tiny_llama(tmp_path / "model", layers=1, max_position_embeddings=1 << 23)
    limit = ExportOptions(bits=3, effort="weights", max_memory=2 << 30)
    assert "rotary tables for all positions of the model (--context gives it fewer)" in refusal(model, limit)
    prepare(str(model), tmp_path / "out" / "model.onnx", ExportOptions(**{**vars(limit), "context": 4096}))
