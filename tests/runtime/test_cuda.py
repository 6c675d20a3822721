"""Models that were exported for CUDA, on a machine without: what is said, and what is done with the cache."""

import threading
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from skim_runtime import GenaiSession, Session, bound_step, library, providers
from skim_runtime.capturing import capturing, running
from skim_runtime.errors import UserError
from skim_runtime.library import kernel_name
from skim_runtime.model_directory import ModelDirectory
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


@pytest.fixture(scope="module")
def packed_bfloat16(hf):
    return build_packed(hf, hf.parent / "packed_bfloat16", ep="cuda", activations="bfloat16")


def test_a_graph_with_bfloat16(packed_bfloat16):
    """The operators, the cache and the norms; logits are float32 all the same."""
    model = onnx.load(packed_bfloat16 / "model.onnx")
    assert ModelDirectory.open(packed_bfloat16).graph.activations == "bfloat16"
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    caches = {types[name] for name in types if name.startswith(("past_key_values.", "present."))}
    assert caches == {onnx.TensorProto.BFLOAT16}
    assert types["logits"] == onnx.TensorProto.FLOAT
    floats = {t.data_type for t in model.graph.initializer if t.name.endswith(("layernorm.weight", "norm.weight"))}
    assert floats == {onnx.TensorProto.BFLOAT16}


@pytest.mark.parametrize("kind", [Session, GenaiSession])
@pytest.mark.filterwarnings("ignore:the model was exported for CUDA")
def test_bfloat16_is_for_gpus(packed_bfloat16, kind):
    with pytest.raises(UserError, match=r"model.onnx: its activations are bfloat16, which onnxruntime has for the GPU"):
        kind(packed_bfloat16)


def test_a_cache_of_bfloat16():
    """The bits that go in are those that come out, whatever numpy takes them for."""
    bits = np.arange(0x3F80, 0x3F8C, dtype=np.uint16).reshape(1, 2, 3, 2)
    value = bound_step.ort_value(bits, 16, "cpu")
    assert value.data_type() == "tensor(bfloat16)"
    assert value.data_ptr() == bits.ctypes.data


@pytest.mark.parametrize("kind", [Session, GenaiSession])
def test_the_provider_that_is_asked_for(packed_cuda, packed, monkeypatch, kind):
    """Nothing is run elsewhere than asked for, and what was asked for needs no warning."""
    available(monkeypatch)
    with pytest.raises(UserError, match=r"model.onnx: can't run on the GPU: the installed onnxruntime.* has no CUDAEx"):
        kind(packed_cuda, ep="cuda")
    with pytest.raises(UserError, match=r"model.onnx: was exported for the CPU: export it with --ep cuda"):
        kind(packed, ep="cuda")
    with pytest.raises(UserError, match="ep must be cpu or cuda, got 'tpu'"):
        kind(packed, ep="tpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kind(packed_cuda, ep="cpu").kernel == f"{kernel_name()}, exact arithmetic"


def test_a_graph_that_can_not_be_captured(packed_cuda, monkeypatch):
    available(monkeypatch, "cuda")
    monkeypatch.setattr(providers, "cuda_version", lambda path: 13000)
    create, asked = ort.InferenceSession, []

    def session(*values, providers, **options):
        asked.append(providers[0][1]["enable_cuda_graph"])
        if asked == ["1"]:
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        made = create(*values, providers=[PROVIDERS["cpu"]])
        made.get_providers = lambda: list(PROVIDERS.values())[::-1]
        return made

    monkeypatch.setattr(ort, "InferenceSession", session)
    made, warning = opened(Session, packed_cuda)
    assert warning.startswith("no CUDA graphs, every kernel is launched by itself: ")
    assert (made.device, made.kernel, asked) == ("cuda", "cuda", ["1", "0"])


def test_nothing_runs_while_a_graph_is_captured():
    seen, go_on = [], threading.Event()

    def capture():
        with capturing():
            go_on.set()
            time.sleep(0.2)
            seen.append("captured")

    def run():
        go_on.wait()
        with running():
            seen.append("ran")

    threads = [threading.Thread(target=target) for target in (capture, run, run)]
    with running(), running():
        threads[0].start()
        assert not go_on.wait(0.2)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["captured", "ran", "ran"]


def test_a_model_for_the_cpu_stays_there(packed, monkeypatch):
    available(monkeypatch, "cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Session(packed).device == "cpu"


def test_libraries_that_have_no_version(tmp_path):
    assert library.cuda_version(Path(__file__)) == 0
    assert library.cuda_version(tmp_path / "missing") == 0
    assert library.cuda_version(library.library_path()) in (0, *range(12000, 20000))


@pytest.mark.parametrize("graphs", [False, True], ids=["launched", "replayed"])
@pytest.mark.parametrize("capacity", [0, 200], ids=["growing cache", "roomy cache"])
def test_a_cache_that_stays_on_the_device(packed_cuda, monkeypatch, capacity, graphs):
    """Memory that the host can't see is played by a copy; steps that a graph is captured of keep buffers and shapes."""
    made = Session(packed_cuda)
    want = made.logits(TOKENS)
    create, far, shapes = bound_step.ort_value, [], set()

    def elsewhere(array, element_type, device):
        if device == "cuda":
            far.append(array := array.copy())
        return create(array, element_type, "cpu")

    class Watched:
        """onnxruntime's session, whose runs of one token are looked at."""

        def __init__(self, session):
            self._session = session

        def __getattr__(self, name):
            return getattr(self._session, name)

        def run_with_iobinding(self, binding, options=None):
            of_graph = options and options.get_run_config_entry("gpu_graph_id")
            inputs = made._fixed._values.items() if of_graph not in (None, "-1") else ()
            shapes.add((of_graph, *((name, *value.shape(), value.data_ptr()) for name, value in inputs)))
            self._session.run_with_iobinding(binding, options)

    monkeypatch.setattr(made, "device", "cuda")
    monkeypatch.setattr(made, "_graphs", graphs)
    monkeypatch.setattr(made, "_session", Watched(made._session))
    monkeypatch.setattr(bound_step, "ort_value", elsewhere)
    for _ in range(2):
        made.reset(capacity)
        got = np.concatenate([made.step(part) for part in (TOKENS[:30], *TOKENS[30:50, None], TOKENS[50:])])
        assert np.linalg.norm(got - want) < 5e-3 * np.linalg.norm(want)
    if not graphs:
        assert shapes == {(None,)}
    else:
        graphs_seen = {of_graph for of_graph, *_ in shapes}
        assert graphs_seen == ({"-1", "0"} if capacity else {"-1", "0", "1"})  # one graph for each cache
        assert len(shapes) == len(graphs_seen)  # one set of shapes and addresses for each graph


def test_half_precision_gives_nearly_the_same_logits(packed_cuda, packed):
    want = Session(packed).logits(TOKENS)
    got = Session(packed_cuda).logits(TOKENS)
    assert got.dtype == np.float32
    assert 0 < np.linalg.norm(got - want) < 0.02 * np.linalg.norm(want)
