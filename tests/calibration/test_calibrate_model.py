"""Calibration in pieces against calibration by one process."""

import numpy as np
import pytest

from skim_export.calibration import Activations, trace_sequences
from skim_export.calibration.calibrate_model import (
    TRACED_TOGETHER,
    activation_bytes,
    gather_statistics,
    spread_statistics,
)
from skim_export.calibration.statistics_store import StatisticsStore
from skim_export.checkpoint import Model
from skim_export.work.resources import Resources
from skim_export.work.tasks import SerialExecutor
from skim_runtime.progress import Progress

from ..tiny_decoders import tiny_decoder
from ..tiny_models import VOCABULARY, tiny_llama, tiny_mistral

SEQUENCES, LENGTH = 2 * TRACED_TOGETHER + 3, 40


class Interrupt(Progress):
    """Ctrl-C after so many steps."""

    def __init__(self, steps):
        self._left = steps

    def step(self, done):
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt


def mixture(path):
    return tiny_decoder("qwen3-moe", path)


@pytest.fixture(params=[tiny_llama, tiny_mistral, mixture], ids=["tied", "untied", "mixture"])
def given(request, tmp_path):
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (SEQUENCES, LENGTH))
    return Model.open(request.param(tmp_path / "hf")), tokens


def files(store):
    return {path.name: path.read_bytes() for path in store.directory.iterdir()}


def spread(given, directory, progress, threads=2):
    directory.mkdir(exist_ok=True)
    store = StatisticsStore(directory)
    spread_statistics(*given, store, vocabulary=True, executor=SerialExecutor(Resources(threads)), progress=progress)
    return files(store)


def test_the_statistics_are_the_same(given, tmp_path):
    (tmp_path / "whole").mkdir()
    store = StatisticsStore(tmp_path / "whole")
    gather_statistics(*given, store, vocabulary=True, resources=Resources(2), progress=Progress())
    assert spread(given, tmp_path / "pieces", Progress(), threads=1) == files(store)


@pytest.mark.parametrize("make", [tiny_llama, lambda path: tiny_decoder("gemma4-e", path)], ids=["llama", "gemma4-e"])
def test_what_activations_take_on_disk(make, tmp_path):
    """Also of a model whose later blocks use keys and values of earlier ones."""
    model, trace = Model.open(make(tmp_path / "hf")), Activations(tmp_path / "trace")
    trace_sequences(model, np.arange(24).reshape(2, 12), trace, resources=Resources(1))
    blocks = len(model.architecture.blocks)
    stored = [trace.input(block) for block in range(blocks + 1)] + [trace.gradient(blocks)]
    assert activation_bytes(model, (2, 12)) == sum(part.nbytes for part in stored)


def test_what_sequences_have_of_their_own(tmp_path):
    """Inputs of single layers, and keys and values that later blocks use."""
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (TRACED_TOGETHER + 2, 20))
    model = Model.open(tiny_decoder("gemma4-e", tmp_path / "hf"))
    stores = []
    for name, run in (("whole", gather_statistics), ("pieces", spread_statistics)):
        (tmp_path / name).mkdir()
        stores.append(StatisticsStore(tmp_path / name))
        how = {"resources": Resources(1)} if name == "whole" else {"executor": SerialExecutor(Resources(1))}
        run(model, tokens, stores[-1], **how, progress=Progress())
    whole, pieces = map(files, stores)
    assert whole
    assert pieces == whole


def test_it_goes_on_after_an_interruption(given, tmp_path):
    """In the first stage, in the second, and with a damaged piece of each."""
    expected = spread(given, tmp_path / "through", Progress())
    for steps in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            spread(given, tmp_path / "again", Interrupt(steps))
    damaged = [*(tmp_path / "again").rglob("input-1.npy"), next((tmp_path / "again").glob("*.statistics"))]
    assert len(damaged) == 4
    for path in damaged:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert spread(given, tmp_path / "again", Progress()) == expected
