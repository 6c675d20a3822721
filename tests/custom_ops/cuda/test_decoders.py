"""Every architecture as it is exported for CUDA: its graph in onnxruntime, our operators' kernels under emulation."""

import numpy as np
import onnxruntime as ort
import pytest

from skim_export.graph.external_data import save_model
from skim_export.graph.genai_builder import DecoderBuilder
from skim_runtime.interface import Interface
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.progress import Progress

from ...tiny_decoders import DECODERS, MIXTURES, cases
from ...tiny_models import VOCABULARY
from ..native import build_cuda_on_cpu

TOKENS = np.random.default_rng(5).integers(2, VOCABULARY, 12)
BOUND = 0.02  # of float16


@pytest.mark.covers("cuda")
@pytest.mark.parametrize("name", cases(sorted(DECODERS.keys() - MIXTURES), "gemma3", "qwen3_5"))
def test_logits(exported, name, tmp_path):
    case = exported(name)
    file = tmp_path / "model.onnx"
    builder = DecoderBuilder(case.model, case.packed.__getitem__, file, 4, "cuda", "float16")
    save_model(builder.build(), file, Progress())
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(build_cuda_on_cpu().parent / "ort_on_cpu" / "libskim_ops_on_cpu.so"))
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    interface = Interface.read(session, ModelDirectory.open(case.directory))
    states = {state.past: state.zeros() for state in interface.states}
    found = session.run(["logits"], interface.feeds(TOKENS[None], 0) | states)[0][0].astype(np.float32)
    wanted = case.reference(TOKENS)
    assert np.linalg.norm(found - wanted) < BOUND * np.linalg.norm(wanted)
