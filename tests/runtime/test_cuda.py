"""Models that were exported for CUDA, on a machine without: what is said, and what is done with the cache."""

import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from skim_runtime import GenaiSession, Session, library, providers, session
from skim_runtime.library import kernel_name
from skim_runtime.providers import PROVIDERS

from .conftest import build_packed

TOKENS = np.random.default_rng(0).integers(2, 300, 80)


@pytest.fixture(scope="module")
def packed_cuda(hf):
    return build_packed(hf, hf.parent / "packed_cuda", ep="cuda")


def available(monkeypatch, *names):
    """Let onnxruntime say that it has these execution providers beside the CPU's."""
    monkeypatch.setattr(
        ort, "get_available_providers", lambda: [*(PROVIDERS[name] for name in names), PROVIDERS["cpu"]]
    )


def opened(kind, directory):
    """A session and the one warning that came with it."""
    with pytest.warns(RuntimeWarning) as caught:
        made = kind(directory)
    (warning,) = caught
    return made, str(warning.message)


@pytest.mark.parametrize("kind", [Session, GenaiSession])
def test_a_runtime_without_cuda(packed_cuda, monkeypatch, kind):
    available(monkeypatch)
    made, warning = opened(kind, packed_cuda)
    assert warning.startswith("the model was exported for CUDA and runs on the CPU: the installed onnxruntime")
    assert made.kernel == f"{kernel_name()}, exact arithmetic"


def test_a_library_without_kernels_for_gpus(packed_cuda, monkeypatch):
    available(monkeypatch, "cuda")
    monkeypatch.setattr(providers, "cuda_version", lambda path: 0)
    made, warning = opened(Session, packed_cuda)
    assert warning.endswith(f"{library.library_path()} has no kernels for GPUs: build it with SKIM_CUDA=on")
    assert made.device == "cpu"


def test_a_provider_that_does_not_load(packed_cuda, monkeypatch):
    available(monkeypatch, "cuda")
    monkeypatch.setattr(providers, "cuda_version", lambda path: 13000)
    # As onnxruntime-gpu does it without a GPU: it logs an error, and the session has the CPU's provider alone.
    create = ort.InferenceSession
    monkeypatch.setattr(
        ort, "InferenceSession", lambda *values, **options: create(*values, providers=[PROVIDERS["cpu"]])
    )
    made, warning = opened(Session, packed_cuda)
    assert warning.endswith("onnxruntime could not load its CUDAExecutionProvider, see its messages")
    assert made.device == "cpu"


def test_a_model_for_the_cpu_stays_there(packed, monkeypatch):
    available(monkeypatch, "cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Session(packed).device == "cpu"


def test_libraries_that_have_no_version(tmp_path):
    assert library.cuda_version(Path(__file__)) == 0
    assert library.cuda_version(tmp_path / "missing") == 0
    assert library.cuda_version(library.library_path()) in (0, *range(12000, 20000))


@pytest.mark.parametrize("capacity", [0, 200], ids=["growing cache", "roomy cache"])
def test_a_cache_that_stays_on_the_device(packed_cuda, monkeypatch, capacity):
    """Memory that the host can't see is played by a copy."""
    made = Session(packed_cuda)
    want = made.logits(TOKENS)
    create = session._ort_value
    monkeypatch.setattr(made, "device", "cuda")
    monkeypatch.setattr(
        session, "_ort_value", lambda array, device: create(array if device == "cpu" else array.copy(), "cpu")
    )
    made.reset(capacity)
    got = np.concatenate([made.step(part) for part in (TOKENS[:30], *TOKENS[30:50, None], TOKENS[50:])])
    assert np.linalg.norm(got - want) < 5e-3 * np.linalg.norm(want)


def test_half_precision_gives_nearly_the_same_logits(packed_cuda, packed):
    want = Session(packed).logits(TOKENS)
    got = Session(packed_cuda).logits(TOKENS)
    assert got.dtype == np.float32
    assert 0 < np.linalg.norm(got - want) < 0.02 * np.linalg.norm(want)
