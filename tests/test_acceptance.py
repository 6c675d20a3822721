"""The promises of the README on the real model, SmolLM2-135M-Instruct, exported with the defaults that users get.

At 3 bits, which takes minutes, in `make test-slow`; always with the quickest method at 4 bits.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from skim_export import export
from skim_export.checkpoint import Checkpoint, Model
from skim_export.graph.reader import read_packed
from skim_export.packed.dequantized import dequantized_model
from skim_runtime import GenaiSession, Session, Tokenizer, generate

TEXT = (Path(__file__).parent.parent / "LICENSE").read_text()
TOKENS = 256


def log_softmax(logits, axis):
    shifted = logits - logits.max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


@pytest.fixture(scope="module", params=["quick", pytest.param("default", marks=pytest.mark.slow)])
def exported(request, smollm2, tmp_path_factory):
    """Directory of the exported model."""
    if request.param == "default":
        return request.getfixturevalue("smollm2_3bit")
    directory = tmp_path_factory.mktemp("smollm2")
    export("smollm2-135m", directory / "model.onnx", bits=4, method="rtn")
    return directory


@pytest.fixture(scope="module")
def exact(exported, tmp_path_factory):
    """The same weights in a graph that multiplies them in float32: directory of the model."""
    directory = tmp_path_factory.mktemp("exact") / "model"
    shutil.copytree(exported, directory)
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    levels = [a for node in model.graph.node for a in node.attribute if a.name == "accuracy_level"]
    assert levels
    for level in levels:
        level.i = 0
    onnx.save(model, directory / "model.onnx")
    return directory


@pytest.fixture(scope="module")
def tokens(exported):
    return np.array(Tokenizer(exported).encode(TEXT)[:TOKENS])


@pytest.fixture(scope="module")
def reference(exported, smollm2, tokens):
    """Logits of transformers with the same dequantized weights, `[256, V]`."""
    packed = read_packed(exported / "model.onnx")
    model = dequantized_model(Model.open(smollm2), packed.__getitem__)
    with torch.no_grad():
        return model(torch.from_numpy(tokens)[None]).logits[0].numpy()


def one_by_one(session, tokens):
    """Logits of every position, each token fed alone: the way of decoding, and all that genai tells."""
    return np.concatenate([session.step([token])[-1:] for token in tokens])


@pytest.mark.parametrize(
    "logits",
    [
        pytest.param(lambda path, tokens: Session(path).logits(tokens), id="onnxruntime"),
        pytest.param(lambda path, tokens: one_by_one(Session(path), tokens), id="onnxruntime-decode"),
        pytest.param(lambda path, tokens: one_by_one(GenaiSession(path), tokens), id="genai-decode"),
        pytest.param(
            lambda path, tokens: Session(path, kernel="function").logits(tokens), id="function", marks=pytest.mark.slow
        ),
    ],
)
def test_logits_equal_those_of_transformers(exact, reference, tokens, logits):
    got = logits(exact, tokens)
    difference = np.abs(got - reference).max()
    print(f"max |logit difference| {difference:.2e}")  # noqa: T201
    assert difference <= 2e-3
    np.testing.assert_array_equal(got.argmax(-1), reference.argmax(-1))


def test_products_in_integers_hardly_differ(exported, reference, tokens):
    """As exported: activations are rounded to 16 bits in every linear layer."""
    session = Session(exported)
    assert "integer arithmetic" in session.kernel
    got = session.logits(tokens)
    p, q = (log_softmax(logits.astype(np.float64), axis=-1) for logits in (reference, got))
    assert np.linalg.norm(got - reference) <= 2e-3 * np.linalg.norm(reference)
    assert (np.exp(p) * (p - q)).sum(-1).mean() <= 2e-5
    np.testing.assert_array_equal(got.argmax(-1), reference.argmax(-1))


def test_it_knows_the_capital_of_france(exported):
    tokenizer = Tokenizer(exported)
    prompt = tokenizer.prompt("What is the capital of France?")
    answer = generate(Session(exported), prompt, max_new_tokens=40)
    assert "Paris" in tokenizer.decode(answer.tokens)


def test_the_file_is_as_large_as_its_bits_say(exported, smollm2):
    """The packed parts, and 4 bytes for every other parameter and entry of the rotary tables, make the file."""
    linears, embeddings, rest, whole = json.loads((exported / "export.json").read_text())["parts"]
    size = sum((exported / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert size == whole["bytes"]
    config = Checkpoint(smollm2).config
    tables = 4 * config.max_position_embeddings * config.head_dim
    packed = sum(part["effective_bits"] * part["weights"] / 8 for part in (linears, embeddings))
    assert size <= 1.01 * (packed + 4 * rest["weights"] + tables)
