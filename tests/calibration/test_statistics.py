"""Calibration block by block against one backward pass through the whole model."""

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from skim_export.calibration import Activations, LinearStatistics
from skim_export.calibration import calibrate as calibrate_on
from skim_export.checkpoint import Checkpoint, Linear, Model
from skim_export.packed.dequantized import dequantized_model
from skim_export.work.resources import ROW_GROUP, Resources
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from ..tiny_decoders import cases, tiny_decoder
from ..tiny_models import VOCABULARY, tiny_llama, tiny_mistral

SEQUENCES, LENGTH = 18, 60  # more than one group of sequences; longer than the sliding window
ROUNDING = 1e-4  # float32 against float64, through blocks whose random weights amplify what is rounded


def calibrate(model: Model, tokens: npt.NDArray[np.int64], **options: Any) -> Iterator[tuple[Linear, LinearStatistics]]:
    """Calibration from the beginning."""
    with tempfile.TemporaryDirectory() as directory:
        yield from calibrate_on(model, tokens, Activations(Path(directory)), **options)


@pytest.fixture
def tokens() -> npt.NDArray[np.int64]:
    return np.random.default_rng(1).integers(0, VOCABULARY, (SEQUENCES, LENGTH))


def build(path: Path, kind: str) -> Model:
    if kind == "llama":
        tiny_llama(path, attention_bias=True, mlp_bias=True)
    elif kind == "mistral":
        tiny_mistral(path, sliding_window=24, intermediate_size=300)  # more rows than a block has
    else:
        tiny_decoder(kind, path)
    return Model.open(path)


def one_pass(
    network: Any, linears: list[Linear], tokens: npt.NDArray[np.int64]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Inputs and outputs, with their gradients, of the modules that are called, after one pass forwards and back."""
    x: dict[str, torch.Tensor] = {}
    y: dict[str, torch.Tensor] = {}

    def see(name: str) -> None:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x[name], y[name] = inputs[0].detach(), output
            output.retain_grad()

        network.get_submodule(name).register_forward_hook(hook)

    for linear in linears:
        for member in linear.members:
            see(member.module)
    ids = torch.from_numpy(tokens)
    logits = network(input_ids=ids).logits[:, :-1]
    nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    return x, y


def whole_model(checkpoint: Checkpoint, linears: list[Linear], tokens: npt.NDArray[np.int64]) -> list[LinearStatistics]:
    """The same statistics by the plainest means, in float64: the whole model, one backward pass, sums over tokens."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float64)
    x, y = one_pass(model, linears, tokens)
    predicted = SEQUENCES * (LENGTH - 1)
    expected = []
    for linear in linears:
        gradient = torch.cat([y[member.module].grad[..., member.rows] for member in linear.members], dim=-1)
        inputs = x[linear.members[0].module]
        fisher = torch.einsum("sti,stj->ij", gradient**2, inputs**2)
        square = (inputs**2).sum(dim=(0, 1)) / predicted
        moments = torch.einsum("st,sti,stj->ij", (gradient**2).mean(dim=-1).sqrt(), inputs, inputs)
        spread = moments.diagonal().sqrt()
        correlation = moments / torch.outer(spread, spread)
        outputs = torch.einsum(
            "sti,stj->ij", gradient / (gradient**2).mean(dim=-1, keepdim=True).sqrt().clamp(1e-30), gradient
        )
        spread = outputs.diagonal().sqrt()
        outputs = in_blocks(outputs / torch.outer(spread, spread))
        expected.append(LinearStatistics((fisher / predicted).numpy(), square.numpy(), correlation.numpy(), outputs))
    return expected


def in_blocks(whole: torch.Tensor) -> npt.NDArray[np.float64]:
    """Of a matrix [N, N], what the rows of a block have in the columns of that block, `[N, ROW_GROUP]`."""
    stored = np.zeros((len(whole), ROW_GROUP))
    for start in range(0, len(whole), ROW_GROUP):
        block = slice(start, min(start + ROW_GROUP, len(whole)))
        stored[block, : block.stop - start] = whole[block, block].numpy()
    return stored


def relative_error(actual: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


KINDS = ("llama", "mistral", "gemma3", "gemma4-e", "phi3", "lfm2", "qwen3_5")


@pytest.mark.parametrize("kind", cases(KINDS, "llama", "mistral", "gemma4-e", "phi3"))
def test_against_the_whole_model(tmp_path: Path, kind: str, tokens: npt.NDArray[np.int64]) -> None:
    model = build(tmp_path / "model", kind)
    rounding = 1e-3 if kind == "qwen3_5" else ROUNDING  # transformers' recurrence is in float32 in any case
    results = list(calibrate(model, tokens, resources=Resources(2), progress=Progress()))
    linears = [linear for linear, _ in results]
    assert linears == [linear for block in reversed(model.architecture.blocks) for linear in block]
    for (linear, actual), expected in zip(results, whole_model(model.checkpoint, linears, tokens), strict=True):
        assert actual.fisher.shape == (linear.out_features, linear.in_features)
        assert actual.correlation.shape == (linear.in_features, linear.in_features)
        for field in ("fisher", "input_square", "correlation", "output_correlation"):
            one, other = getattr(actual, field), getattr(expected, field)
            assert one.dtype == np.float32
            assert relative_error(one, other) < rounding, (linear.name, field)


def test_experts_against_the_whole_model(tmp_path: Path, tokens: npt.NDArray[np.int64]) -> None:
    """Sums over the tokens of each expert alone, in float64; some experts have none, for the text has two tokens."""
    model, experts = build(tmp_path / "model", "qwen3-moe"), 6
    tokens = np.where(tokens % 2, 7, 9)
    calibrated = calibrate(model, tokens, resources=Resources(2), progress=Progress())
    found = {linear.name: statistics for linear, statistics in calibrated}

    network = dequantized_model(model, lambda name: None).double().requires_grad_()
    linears = [linear for linear in model.architecture.linears if linear.of_experts]
    assert len(linears) == 6
    x, y = one_pass(network, linears, tokens)
    predicted = SEQUENCES * (LENGTH - 1)
    unseen = False
    for linear in linears:
        seen = [len(x[member.module]) if member.module in x else 0 for member in linear.members]
        assert sum(seen) == 2 * tokens.size
        count = linear.out_features // experts
        fisher = torch.zeros(linear.out_features, linear.in_features, dtype=torch.float64)
        moments = torch.zeros(linear.in_features, linear.in_features, dtype=torch.float64)
        outputs = torch.eye(linear.out_features, dtype=torch.float64)
        for member, rows in linear.places():
            if member.module in x:
                dy, inputs = y[member.module].grad, x[member.module]
                assert dy is not None
                weight = (dy**2).mean(dim=1).sqrt()
                fisher[rows] = torch.einsum("ti,tj->ij", dy**2, inputs**2)
                moments += torch.einsum("t,ti,tj->ij", weight, inputs, inputs)
                together = torch.einsum("ti,tj->ij", dy / weight[:, None].clamp(1e-30), dy)
                spread = together.diagonal().sqrt()
                together = together / torch.outer(spread, spread) * len(dy) / (len(dy) + ROW_GROUP)
                outputs[rows, rows] = together.fill_diagonal_(1)
        fisher += 16 * fisher.sum(dim=0) / (sum(seen) * count)
        spread = moments.diagonal().sqrt()
        correlation = moments / torch.outer(spread, spread)
        if linear.name.endswith("down_proj"):
            correlation = torch.eye(linear.in_features, dtype=torch.float64)
        actual = found[linear.name]
        assert actual.output_correlation is not None
        assert actual.expert_tokens is not None
        assert actual.expert_tokens.tolist() == seen
        assert relative_error(actual.fisher, (fisher / predicted).numpy()) < ROUNDING, linear.name
        assert relative_error(actual.correlation, correlation.numpy()) < ROUNDING, linear.name
        assert relative_error(actual.output_correlation, in_blocks(outputs)) < ROUNDING, linear.name
        unseen |= 0 in seen
    assert unseen


@pytest.mark.parametrize(
    ("kind", "tie"),
    [
        ("llama", True),
        ("llama", False),
        ("gemma2", True),
        pytest.param("gemma2", False, marks=pytest.mark.slow),
        pytest.param("gemma4", True, marks=pytest.mark.slow),
        ("granite", False),
    ],
)
def test_embedding_and_head(tmp_path: Path, kind: str, tie: bool, tokens: npt.NDArray[np.int64]) -> None:
    """Against one token after the other, in float64; what no token touched has a little of the mean."""
    model = Model.open(tiny_decoder(kind, tmp_path / "model", tie_word_embeddings=tie))
    architecture = model.architecture
    results = list(calibrate(model, tokens, vocabulary=True, resources=Resources(2), progress=Progress()))
    found = {linear.name: statistics for linear, statistics in results[-len(architecture.vocabulary_linears) :]}
    assert list(found) == [linear.name for linear in architecture.vocabulary_linears]
    plain = list(calibrate(model, tokens, resources=Resources(2), progress=Progress()))
    assert len(plain) == len(results) - len(found)

    network = AutoModelForCausalLM.from_pretrained(model.checkpoint.path, dtype=torch.float64)
    ids = torch.from_numpy(tokens)
    embedding = network.get_input_embeddings()
    embedded = embedding.weight[ids].detach().requires_grad_()
    seen: list[torch.Tensor] = []
    network.lm_head.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output)))
    logits = network(inputs_embeds=embedded * getattr(embedding, "embed_scale", 1)).logits[:, :-1]
    hidden, outputs = seen
    outputs.retain_grad()
    nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    predicted = SEQUENCES * (LENGTH - 1)
    of_head, of_embedding = (torch.zeros(VOCABULARY, hidden.shape[-1], dtype=torch.float64) for _ in range(2))
    for s in range(SEQUENCES):
        for t in range(LENGTH):
            of_embedding[ids[s, t]] += embedded.grad[s, t] ** 2 / predicted
            if t < LENGTH - 1:
                of_head += torch.outer(outputs.grad[s, t], hidden[s, t].detach()) ** 2 / predicted
    expected = [of_head + of_embedding] if tie else [of_embedding, of_head]
    for statistics, fisher in zip(found.values(), expected, strict=True):
        smoothed = fisher + 0.1 * fisher.mean(dim=0)
        assert relative_error(statistics.fisher, smoothed.numpy()) < ROUNDING
        assert statistics.correlation.shape == (hidden.shape[-1],) * 2
        np.testing.assert_allclose(np.diag(statistics.correlation), 1)


def test_the_sliding_window_matters(tmp_path: Path, tokens: npt.NDArray[np.int64]) -> None:
    """Otherwise the test above would not see a window that was dropped."""
    fisher = []
    for window in (24, None):
        model = Model.open(tiny_mistral(tmp_path / str(window), sliding_window=window))
        results = calibrate(model, tokens, resources=Resources(2), progress=Progress())
        fisher.append(list(results)[-1][1].fisher)
    assert relative_error(fisher[0], fisher[1]) > 1e-3


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_bits_do_not_depend_on_threads(tmp_path: Path, kind: str, tokens: npt.NDArray[np.int64]) -> None:
    model = build(tmp_path / "model", kind)
    runs = [list(calibrate(model, tokens, resources=Resources(n), progress=Progress())) for n in (1, 2, 3)]
    for run in runs[1:]:
        for (linear, one), (_, other) in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(one.fisher, other.fisher, err_msg=linear.name)
            np.testing.assert_array_equal(one.correlation, other.correlation, err_msg=linear.name)


def test_threads_of_torch_are_the_callers_again(tmp_path: Path, tokens: npt.NDArray[np.int64]) -> None:
    model = build(tmp_path / "model", "llama")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seen = [torch.get_num_threads() for _ in calibrate(model, tokens, resources=Resources(2), progress=Progress())]
        assert set(seen) == {3}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


class Recorded(Progress):
    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.steps = 0

    def start(self, stage: str, total: int) -> None:
        self.stages.append((stage, total))

    def step(self, done: str) -> None:
        self.steps += 1


def test_progress(tmp_path: Path, tokens: npt.NDArray[np.int64]) -> None:
    model = build(tmp_path / "model", "llama")
    progress = Recorded()
    list(calibrate(model, tokens, resources=Resources(1), progress=progress))
    assert progress.stages == [("calibrating", 5)]
    assert progress.steps == 5


@pytest.fixture
def absurd_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read, although nothing could be exported of them."""
    monkeypatch.setattr("skim_export.checkpoint.checkpoint.LARGEST", np.inf)


@pytest.mark.usefixtures("absurd_weights")
def test_loss_that_is_not_finite(tmp_path: Path, tokens: npt.NDArray[np.int64]) -> None:
    model = build(tmp_path / "model", "mistral")
    file = model.checkpoint.path / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] *= 1e38
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="loss on the calibration text is "):
        list(calibrate(Model.open(model.checkpoint.path), tokens, resources=Resources(2), progress=Progress()))


@pytest.mark.usefixtures("absurd_weights")
def test_gradient_that_is_not_finite(tmp_path: Path, tokens: npt.NDArray[np.int64]) -> None:
    path = tiny_llama(tmp_path / "model", tie=False, rms_norm_eps=1e-38)
    tensors = load_file(path / "model.safetensors")
    scales = {"embed_tokens": 1e-17, "o_proj": 1e-17, "up_proj": 1e10, "down_proj": 1e-27}
    for name, tensor in tensors.items():  # tiny hidden states, which the last norm makes large again: finite logits
        tensor *= scales.get(name.split(".")[-2], 1.0)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    model = Model.open(path)
    with pytest.raises(UserError, match=r"gradient of model\.layers\.1\..* is not finite"):
        list(calibrate(model, tokens, resources=Resources(2), progress=Progress()))


def test_one_token_is_too_few(tmp_path: Path) -> None:
    model = build(tmp_path / "model", "llama")
    with pytest.raises(UserError, match="at least 2 tokens, got 1"):
        list(calibrate(model, np.zeros((2, 1), np.int64), resources=Resources(1), progress=Progress()))


def test_an_interrupt_ends_it(tmp_path: Path, tokens: npt.NDArray[np.int64]) -> None:
    model = build(tmp_path / "model", "llama")

    class Interrupt(Progress):
        def step(self, done: str) -> None:
            raise KeyboardInterrupt

    before = torch.get_num_threads(), threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        list(calibrate(model, tokens, resources=Resources(2), progress=Interrupt()))
    deadline = time.monotonic() + 30  # workers end what they are at; a busy machine takes its time
    while threading.active_count() > before[1] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (torch.get_num_threads(), threading.active_count()) == before


@pytest.mark.parametrize("vocabulary", [False, True])
def test_it_goes_on_where_it_was_given_up(tmp_path: Path, tokens: npt.NDArray[np.int64], vocabulary: bool) -> None:
    model = build(tmp_path / "model", "llama")
    options: dict[str, Any] = {"vocabulary": vocabulary, "resources": Resources(2), "progress": Progress()}
    expected = {linear.name: statistics for linear, statistics in calibrate(model, tokens, **options)}
    for stop in range(1, len(expected)):
        found: dict[str, LinearStatistics] = {}
        activations = Activations(tmp_path / str(stop))
        given_up = calibrate_on(model, tokens, activations, **options)
        for linear, statistics in given_up:
            found[linear.name] = statistics
            if len(found) == stop:
                break
        given_up.close()  # type: ignore[attr-defined]
        names = set(found)

        def is_kept(linear: Linear, names: set[str] = names) -> bool:
            return linear.name in names

        again = calibrate_on(model, tokens, activations, is_kept=is_kept, **options)
        repeated = {linear.name: statistics for linear, statistics in again}
        blocks_kept = (stop - 1) // 5  # of which the gradient in their inputs was computed, too
        assert len(repeated) == len(expected) - 5 * min(blocks_kept, 2)
        for name, statistics in expected.items():
            for of_run in (found, repeated):
                if name in of_run:
                    np.testing.assert_array_equal(of_run[name].fisher, statistics.fisher, err_msg=name)
                    np.testing.assert_array_equal(of_run[name].correlation, statistics.correlation, err_msg=name)
