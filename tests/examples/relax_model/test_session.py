"""Whole models: Relax against onnxruntime."""

import shutil

import numpy as np
import onnx
import pytest

from skim_runtime import Session, generate
from skim_runtime.errors import UserError

from ...bundle.models import SUPPORTED, export_tiny
from ...tools import require, require_packages

require_packages("tvm")
# ruff: noqa: E402

from relax_model.compile import compile_model
from relax_model.session import RelaxSession

from skim_export.bundle.target import load_cpu_target

from .running import TARGET, relative_error

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "biased", "llama3", "float16")]
MODELS = ["windowed", *SLOW]
AARCH64 = 183  # machine in the header of an ELF file
TOKENS = np.random.default_rng(0).integers(2, 300, 80)


def compiled(name, path):
    """One of the tiny models: its directory, and the library made of it."""
    directory = export_tiny(name, path).path
    compile_model(directory, TARGET, path / "model.so")
    return directory, path / "model.so"


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    return compiled(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """For what is the same for all models."""
    return compiled("llama", tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("capacity", [0, 200], ids=["growing cache", "roomy cache"])
def test_logits_equal_those_of_onnxruntime(model, capacity):
    directory, library = model
    session = RelaxSession(directory, library, threads=2)
    session.reset(capacity)
    parts = [TOKENS[:30], *TOKENS[30:50, None], TOKENS[50:70], *TOKENS[70:, None]]
    got = np.concatenate([session.step(part) for part in parts])
    assert session.length == len(TOKENS)
    assert relative_error(got, Session(directory, threads=1).logits(TOKENS)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPPORTED)
def test_every_architecture_against_transformers(name, exported, tmp_path):
    """A prompt longer than the windows, single tokens, and some more at once."""
    case = exported(name)
    compile_model(case.directory, TARGET, tmp_path / "model.so")
    session = RelaxSession(case.directory, tmp_path / "model.so", threads=2)
    parts = [TOKENS[:30], *TOKENS[30:50, None], TOKENS[50:]]
    got = np.concatenate([session.step(part) for part in parts])
    assert relative_error(got, case.reference(TOKENS)) < 5e-5


def test_the_same_tokens_are_generated(model):
    directory, library = model
    session = RelaxSession(directory, library, threads=1)
    want = generate(Session(directory, threads=1), TOKENS[:20].tolist(), max_new_tokens=40, stop=())
    for _ in range(2):  # what the session held before is forgotten
        assert generate(session, TOKENS[:20].tolist(), max_new_tokens=40, stop=()).tokens == want.tokens


def test_threads_are_those_that_are_asked_for(llama):
    import tvm_ffi

    directory, library = llama
    threads = tvm_ffi.get_global_func("runtime.NumThreads")
    for wanted in (1, 2, 1):
        RelaxSession(directory, library, threads=wanted)
        assert threads() == wanted
    with pytest.raises(UserError, match="threads must be at most"):
        RelaxSession(directory, library, threads=1000)


def test_compiles_for_this_process(llama):
    session = RelaxSession.compile(llama[0], TARGET, threads=1)
    assert relative_error(session.step(TOKENS[:5]), Session(llama[0], threads=1).step(TOKENS[:5])) < 1e-5
    assert session.eos_token_ids == (1,)


@pytest.mark.slow
def test_compiles_for_another_machine(llama, tmp_path):
    require(load_cpu_target("rpi5").compiler_name)
    library = tmp_path / "model.so"
    compile_model(llama[0], "rpi5", library)
    assert int.from_bytes(library.read_bytes()[18:20], "little") == AARCH64


def test_mistakes_are_refused(llama):
    directory, library = llama
    session = RelaxSession(directory, library, threads=1)
    with pytest.raises(UserError, match="513 tokens do not fit the model's context of 512"):
        session.step(np.zeros(513, np.int64))
    with pytest.raises(UserError, match="token 320: the model knows those from 0 to 319"):
        session.step([3, 320])
    with pytest.raises(UserError, match="missing"):
        RelaxSession(directory, library.with_name("none.so"))


def test_a_library_of_another_model_is_refused(llama, tmp_path):
    directory, library = llama
    changed = shutil.copytree(directory, tmp_path / "changed")
    model = onnx.load(changed / "model.onnx", load_external_data=False)
    model.doc_string = "changed"
    (changed / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"model\.so: not compiled from"):
        RelaxSession(changed, library)
