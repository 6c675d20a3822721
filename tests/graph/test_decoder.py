"""The decoder graph on packed weights against transformers with the same weights, dequantized."""

import numpy as np
import onnxruntime as ort
import pytest
import torch

from skim_export.checkpoint import Model
from skim_export.graph.external_data import save_model
from skim_export.graph.genai_builder import DecoderBuilder
from skim_export.packed.dequantized import dequantized_model
from skim_runtime.library import library_path
from skim_runtime.progress import Progress

from ..random_packed import random_units
from ..tiny_models import tiny_llama, tiny_mistral

MODELS = {
    "llama-tied": lambda path: tiny_llama(path),
    "llama-untied-biased": lambda path: tiny_llama(path, tie=False, attention_bias=True, mlp_bias=True),
    "mistral-sliding-untied": lambda path: tiny_mistral(path, sliding_window=16, tie=False),
}


@pytest.fixture(scope="module", params=list(MODELS))
def exported(request, tmp_path_factory):
    """The ONNX file of a tiny model, and the torch model that it must equal."""
    path = tmp_path_factory.mktemp(request.param)
    model = Model.open(MODELS[request.param](path / "hf"))
    units = random_units(model)
    output = path / "onnx" / "model.onnx"
    output.parent.mkdir()
    builder = DecoderBuilder(model, units.__getitem__, output, 0)
    save_model(builder.build(), output, Progress())
    return output, dequantized_model(model, units.__getitem__)


def onnx_logits(path, tokens, head_size, library):
    options = ort.SessionOptions()
    if library:
        options.register_custom_ops_library(str(library_path()))
    session = ort.InferenceSession(path, options)
    feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    for value in session.get_inputs():
        if value.name.startswith("past_key_values"):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, head_size), np.float32)
    return session.run(["logits"], feeds)[0]


@pytest.mark.parametrize("library", [False, True], ids=["function", "library"])
def test_logits_equal_those_of_transformers(exported, library):
    path, model = exported
    tokens = np.random.default_rng(2).integers(0, 300, (1, 48))
    with torch.no_grad():
        want = model(torch.from_numpy(tokens)).logits.numpy()
    got = onnx_logits(path, tokens, model.config.head_dim, library)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    np.testing.assert_array_equal(got.argmax(-1), want.argmax(-1))


def test_external_data_is_aligned(exported):
    path, _ = exported
    import onnx

    model = onnx.load(path, load_external_data=False)
    offsets = [
        int(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    ]
    assert offsets
    assert all(offset % 64 == 0 for offset in offsets)
