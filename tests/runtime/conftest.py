"""Tiny exported models: full precision, half precision, and packed with random weights."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from skim_export.checkpoint import Model
from skim_export.graph.external_data import save_model
from skim_export.graph.genai_builder import LIBRARY_NAME, DecoderBuilder
from skim_runtime.library import library_path
from skim_runtime.progress import Progress
from skim_runtime.providers import ACTIVATIONS

from ..random_packed import random_packed
from ..tiny_models import tiny_llama, tiny_mistral


def build(hf: Path, output: Path, precision: str, provider: str) -> Path:
    """Export without quantizing, by onnxruntime-genai's own model builder."""
    from onnxruntime_genai.models import builder

    options = builder.parse_extra_options(
        "", str(hf), str(output), precision, provider, str(output), ["hf_token=false"]
    )
    builder.create_model("", str(hf), str(output), precision, provider, str(output), **options)
    return output


def build_packed(
    hf: Path, output: Path, accuracy_level: int = 0, ep: str = "cpu", seed: int = 1, activations: str | None = None
) -> Path:
    """Export with random packed weights, the operator library beside them."""
    model = Model.open(hf)
    architecture = model.architecture
    rng = np.random.default_rng(seed)
    units = {
        linear.name: random_packed(rng, linear.out_features, linear.in_features, [1, 2, 3], column_scale=True)
        for block in architecture.blocks
        for linear in block
    }
    for name in {architecture.embedding} | (set() if architecture.tied else {architecture.head}):
        units[name] = random_packed(rng, architecture.vocabulary_size, architecture.hidden_size, [15])
    output.mkdir()
    activations = activations or ACTIVATIONS[ep][0]
    builder = DecoderBuilder(
        model, units.__getitem__, output / "model.onnx", accuracy_level, ep, activations, with_library=True
    )
    save_model(builder.build(), output / "model.onnx", Progress())
    builder.write_configuration()
    shutil.copyfile(library_path(), output / LIBRARY_NAME)
    return output


@pytest.fixture(scope="session")
def hf(tmp_path_factory) -> Path:
    """The checkpoint that `fp32` and `fp16` are exported from."""
    return tiny_llama(tmp_path_factory.mktemp("runtime") / "hf")


@pytest.fixture(scope="session")
def fp32(hf) -> Path:
    return build(hf, hf.parent / "fp32", "fp32", "cpu")


@pytest.fixture(scope="session")
def fp16(hf) -> Path:
    """For CUDA the builder chooses GroupQueryAttention, for the CPU not; onnxruntime runs both on the CPU."""
    return build(hf, hf.parent / "fp16", "fp16", "cuda")


@pytest.fixture(scope="session")
def packed(hf) -> Path:
    return build_packed(hf, hf.parent / "packed")


@pytest.fixture(scope="session")
def packed_integer(hf) -> Path:
    """The weights of `packed`, in a graph that allows for integer arithmetic."""
    return build_packed(hf, hf.parent / "packed_integer", accuracy_level=4)


@pytest.fixture(scope="session")
def packed_mistral(tmp_path_factory) -> Path:
    """Untied, with a sliding window of 16 tokens."""
    path = tmp_path_factory.mktemp("mistral")
    return build_packed(tiny_mistral(path / "hf", sliding_window=16), path / "packed")


@pytest.fixture
def copy(packed, tmp_path) -> Path:
    """A copy of `packed` to damage."""
    return shutil.copytree(packed, tmp_path / "copy")
