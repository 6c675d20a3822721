"""Tuning: its gradients against autograd through the whole model, and what it promises of its result."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from skim_export import tuning
from skim_export.calibration.calibrate_model import gather_statistics
from skim_export.calibration.statistics_store import StatisticsStore
from skim_export.checkpoint import Model
from skim_export.packed import CLASSES, LevelKind
from skim_export.packed.checkpoint import PackedCheckpoint
from skim_export.packed.dequantized import dequantized_model
from skim_export.pipeline.budget import Budget
from skim_export.pipeline.quantize_linear import QuantizeOptions
from skim_export.pipeline.quantize_model import allocate, linear_tasks
from skim_export.tuning import training as module
from skim_export.tuning.linear import TrainedLinear
from skim_export.work.resources import Resources
from skim_export.work.tasks import SerialExecutor, do_tasks
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from ..random_packed import random_packed
from ..tiny_models import VOCABULARY, tiny_llama, tiny_mistral

LENGTH = 24


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(module, "EVERY", 2)
    monkeypatch.setattr(module, "EPOCHS", 1)  # random tokens have nothing to teach twice
    monkeypatch.setattr(module, "LEVEL_RATE", 0.01)


@pytest.fixture(scope="module", params=["llama", "mistral"])
def quantized(request, tmp_path_factory):
    """A tiny model of layers of one and a half bits: where it is, its packed checkpoint, and tokens."""
    path = tmp_path_factory.mktemp(request.param)
    make = {"llama": lambda p: tiny_llama(p, attention_bias=True), "mistral": tiny_mistral}[request.param]
    model = Model.open(make(path / "model"))
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (tuning.HELD_OUT + 6 * module.BATCH, LENGTH))
    store, options, common = StatisticsStore(path), QuantizeOptions(), {"progress": Progress()}
    gather_statistics(model, tokens, store, resources=Resources(2), **common)
    common["executor"] = SerialExecutor(Resources(2))
    widths = allocate(model, store, options, Budget(1.5), curves=path, **common)
    packed = PackedCheckpoint(path / "packed")
    tasks = linear_tasks(model, store, widths, packed, options, Resources(2))
    do_tasks("quantizing", tasks, **common)
    return model, path / "packed", tokens


def copied(directory, path):
    """A packed checkpoint of its own, since tuning changes it."""
    packed = PackedCheckpoint(path)
    original = PackedCheckpoint(directory)
    for name in original.names():
        packed.write(name, original.read(name), original.report(name))
    return packed


def divergence(model, packed, tokens):
    """Mean KL(full precision || quantized) in the plainest way."""
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        full = dequantized_model(model, lambda name: None)(ids).logits[:, :-1].double()
        found = dequantized_model(model.replacing(packed.parameters()), read(packed))(ids)
    wanted, found = full.log_softmax(-1), found.logits[:, :-1].double().log_softmax(-1)
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def read(packed):
    return lambda name: packed.read(name) if name in packed else None


def test_gradients_are_those_of_the_whole_model(quantized, tmp_path):
    model, directory, tokens = quantized
    packed = copied(directory, tmp_path / "packed")
    network = dequantized_model(model, read(packed)).double()
    parameters = {name: p.requires_grad_() for name, p in network.named_parameters()}
    batch = torch.from_numpy(tokens[tuning.HELD_OUT :][: module.BATCH])
    with torch.no_grad():
        full = dequantized_model(model, lambda name: None).double()(batch).logits[:, :-1]
    wanted, found = full.log_softmax(-1), network(batch).logits[:, :-1].log_softmax(-1)
    (wanted.exp() * (wanted - found)).sum(-1).mean().backward()

    student = step_once(model, packed, tokens, tmp_path)
    for linear in model.architecture.linears:
        gradient = torch.cat([parameters[f"{member.module}.weight"].grad for member in linear.members]).numpy()
        layer = packed.read(linear.name)
        windows, levels = layer.windows(), layer.unpack()[1]
        expected = np.zeros(levels.values().shape)
        for row in range(linear.out_features):
            np.add.at(expected[row], windows[row], gradient[row])
            if levels.memory[row]:  # what moves a level moves its negative against it
                own = slice(0, 1 << levels.level_bits[row])
                expected[row, own] -= expected[row, own][::-1].copy()
        actual = student.linears[linear.name].optimizer.mean.numpy() * 10  # a tenth of the first gradient
        assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max(), linear.name
    names = [name for name in parameters if name.endswith("norm.weight")]
    assert len(names) == 2 * len(model.architecture.blocks) + 1
    for name in names:
        actual, expected = student._optimizers[name].mean.numpy() * 10, parameters[name].grad.numpy()
        assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max(), name


def step_once(model, packed, tokens, scratch):
    ids = torch.from_numpy(tokens)
    with module.workers(2) as pool:
        teacher = module._final_states(pool, model, ids, Progress())
        student = module.Student(model, packed, tokens, scratch)
        trainer = module._Trainer(pool, model.architecture, student, ids, teacher)
        trainer.step(slice(tuning.HELD_OUT, tuning.HELD_OUT + module.BATCH), 1.0)
    return student


def test_less_divergence_on_text_it_never_saw(quantized, tmp_path):
    model, directory, tokens = quantized
    packed = copied(directory, tmp_path / "packed")
    held_out = tokens[: tuning.HELD_OUT]
    before = divergence(model, packed, held_out)
    codes = {name: packed.read(name).codes for name in packed.names()}
    sizes = {name: packed.read(name).nbytes for name in packed.names()}
    report = tuning.tune(
        model, packed, tokens, tmp_path / "state", resources=Resources(2), progress=Progress()
    )  # fmt: skip
    assert report.before == pytest.approx(before, rel=1e-4)
    assert 0 < report.steps <= 6
    assert report.after < 0.995 * report.before
    # What is stored is rounded to int8.
    assert divergence(model, packed, held_out) == pytest.approx(report.after, rel=0.02)
    for name, before_codes in codes.items():
        np.testing.assert_array_equal(packed.read(name).codes, before_codes)
        assert packed.read(name).nbytes == sizes[name]
        assert packed.report(name)["tuned"] is True


class Stop(Progress):
    """Interrupts after some steps."""

    def __init__(self, steps):
        self.left, self.tuning = steps, False

    def start(self, stage, total):
        self.tuning = stage == "tuning"

    def step(self, done):
        self.left -= self.tuning
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("steps", [1, 5, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (3, 9))])
def test_an_interrupted_run_goes_on_to_the_same_bytes(quantized, tmp_path, monkeypatch, steps):
    monkeypatch.setattr(module, "EPOCHS", 2)
    monkeypatch.setattr(module, "PATIENT_LOOKS", 99)
    model, directory, tokens = quantized
    through, resumed = copied(directory, tmp_path / "a"), copied(directory, tmp_path / "b")
    state = tmp_path / "state"
    expected = tuning.tune(model, through, tokens, tmp_path / "other", resources=Resources(1), progress=Progress())
    with pytest.raises(KeyboardInterrupt):
        tuning.tune(model, resumed, tokens, state, resources=Resources(2), progress=Stop(steps))
    assert state.exists() == (steps > module.EVERY)
    assert tuning.tune(model, resumed, tokens, state, resources=Resources(2), progress=Progress()) == expected
    for name in through.names():
        assert through.digest(name) == resumed.digest(name)
    for name, norm in through.parameters().items():
        assert torch.equal(norm, resumed.parameters()[name])


def test_it_stops_when_nothing_helps_and_keeps_the_original(quantized, tmp_path, monkeypatch):
    model, directory, tokens = quantized
    packed = copied(directory, tmp_path / "packed")
    digests = [packed.digest(name) for name in packed.names()]
    monkeypatch.setattr(module, "LEVEL_RATE", 10.0)
    monkeypatch.setattr(module, "PATIENT_LOOKS", 1)
    watch = Stop(steps=10**6)
    report = tuning.tune(model, packed, tokens, tmp_path / "state", resources=Resources(2), progress=watch)
    assert 10**6 - watch.left == module.EVERY
    assert (report.steps, report.after) == (0, report.before)
    assert [packed.digest(name) for name in packed.names()] == digests
    assert packed.parameters() == {}


def test_the_state_of_another_run_is_refused(quantized, tmp_path):
    model, directory, tokens = quantized
    packed, state = copied(directory, tmp_path / "packed"), tmp_path / "state"
    common = {"resources": Resources(2), "progress": Progress()}
    tuning.tune(model, packed, tokens, state, **common)
    with safe_open(state, framework="np") as file:
        assert json.loads(file.metadata()["record"])["step"] > 0
    with pytest.raises(UserError, match="state is the state of another tuning"):
        tuning.tune(model, packed, tokens, state, **common)  # the layers are tuned by now
    with pytest.raises(UserError, match="at least 12 sequences of text, got 11"):
        tuning.tune(model, packed, tokens[:11], state, **common)


@pytest.mark.parametrize("codebook", [np.int8, np.float16])
def test_a_layer_that_was_not_moved_is_as_it_was(codebook, tmp_path):
    packed = random_packed(np.random.default_rng(1), 60, 70, range(CLASSES), codebook, column_scale=True)
    layer = TrainedLinear(packed, tmp_path / "windows.npy")
    np.testing.assert_allclose(layer.weight().numpy(), packed.dequantize(), rtol=1e-6)
    again = layer.pack(packed)
    for name in packed.TENSORS:
        if name not in ("codebook", "row_scale"):
            np.testing.assert_array_equal(getattr(again, name), getattr(packed, name))
    difference = again.dequantize() - packed.dequantize()
    assert np.abs(difference).max() < 0.01 * np.abs(packed.dequantize()).max()


def test_affine_rows_stay(tmp_path):
    packed = random_packed(np.random.default_rng(2), 60, 70, range(CLASSES))
    layer = TrainedLinear(packed, tmp_path / "windows.npy")
    layer.step(torch.ones_like(layer.levels), rate=0.5)
    affine = packed.unpack()[1].kind == LevelKind.AFFINE
    moved = (layer.pack(packed).dequantize() != packed.dequantize()).any(axis=1)
    assert affine.any()
    np.testing.assert_array_equal(moved, ~affine)
