"""Calibration on a device other than the CPU. There is no GPU here: see `elsewhere.py` for what stands for one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skim_export.calibration import Activations, LinearStatistics, calibrate, self_generated, text
from skim_export.calibration.streaming import StreamedModel
from skim_export.checkpoint import Model
from skim_export.work.resources import Resources
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from ..tiny_decoders import tiny_decoder
from ..tiny_models import VOCABULARY, tiny_llama, tiny_mistral

MODELS = {
    "llama": lambda path: tiny_llama(path, attention_bias=True),
    "mistral": tiny_mistral,
    "mixture": lambda path: tiny_decoder("qwen3-moe", path),
}


@pytest.fixture(params=["llama", "mistral", pytest.param("mixture", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    return Model.open(MODELS[request.param](tmp_path / "model"))


def statistics(model: Model, directory: Path, **options: Any) -> dict[str, LinearStatistics]:
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (10, 40))
    results = calibrate(model, tokens, Activations(directory), vocabulary=True, progress=Progress(), **options)
    return {linear.name: found for linear, found in results}


@pytest.mark.parametrize("device", ["cpu", "second"])
def test_the_statistics_are_those_of_the_cpu(
    model: Model, tmp_path: Path, second_device: torch.device, device: str
) -> None:
    expected = statistics(model, tmp_path / "cpu", resources=Resources(2))
    chosen = second_device if device == "second" else torch.device("cpu")
    found = statistics(model, tmp_path / "device", resources=Resources(1, device=chosen))
    assert found.keys() == expected.keys()
    vocabulary = {linear.name for linear in model.architecture.vocabulary_linears}
    for name, one in found.items():
        for field in ("fisher", "input_square", "correlation", "output_correlation"):
            actual, wanted = getattr(one, field), getattr(expected[name], field)
            if actual is None:
                assert wanted is None
                assert name in vocabulary
                continue
            assert isinstance(actual, np.ndarray)
            if device == "cpu":
                np.testing.assert_array_equal(actual, wanted, err_msg=name)
            assert np.abs(actual - wanted).max() < 1e-5 * np.abs(wanted).max(), (name, field)


def test_weights_come_to_the_device_and_go(model: Model, second_device: torch.device) -> None:
    streamed = StreamedModel(model, second_device)
    hidden, arguments = streamed.enter(torch.zeros(2, 8, dtype=torch.int64))
    assert hidden.device.type == "cpu"
    assert arguments[0].common["position_embeddings"][0].device == second_device
    block = streamed.load_block(0)
    assert {parameter.device for parameter in block.parameters()} == {second_device}
    streamed.unload_block(0)
    assert {parameter.device.type for parameter in block.parameters()} == {"meta"}


def test_the_text_is_that_of_the_cpu(model: Model, second_device: torch.device) -> None:
    texts = [
        self_generated(model, 5, 20, seed=0, resources=Resources(1, device=device), progress=Progress())
        for device in (None, second_device)
    ]
    np.testing.assert_array_equal(texts[0], texts[1])


def test_a_model_that_does_not_fit_on_the_device(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "free_memory", lambda device: 10_000)
    with pytest.raises(UserError, match=r"takes 0\.0 GB of memory on cuda:1 and 0\.0 GB are available: give a text"):
        self_generated(
            model,
            1,
            8,
            seed=0,
            resources=Resources(1, device=torch.device("cuda", 1)),
            progress=Progress(),
        )
