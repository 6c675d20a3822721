"""One run of a decoder, whatever engine it has; made to be called in a process of its own, so it imports little."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from skim_runtime.errors import UserError
from skim_runtime.measure.decoding import WARM_UP, Engine, decode
from skim_runtime.operators import DOMAIN, OPERATORS
from skim_runtime.progress import Progress

__all__ = ["ENGINES", "Decoder", "Speeds", "measure", "weight_bytes"]

MATMULS = {("com.microsoft", "MatMulNBits"), ("", "MatMul")}
MATMULS |= {(DOMAIN, operator.name) for operator in OPERATORS.values() if operator.is_product}


@dataclass(frozen=True)
class Decoder:
    """What is measured.

    Attributes:
        name: what the table calls it.
        engine: one of `ENGINES`.
        path: directory of an ONNX model, or a GGUF file.
    """

    name: str
    engine: str
    path: Path


@dataclass(frozen=True)
class Speeds:
    """What one run found.

    Attributes:
        kernel: what multiplied packed weights, as `skim-run` tells it; None with llama.cpp.
        prompt: tokens of the prompt for each second until the first new token.
        decode: new tokens after the first for each second after that.
    """

    kernel: str | None
    prompt: float
    decode: float


def measure(progress: Progress, decoder: Decoder, threads: int, prompt: Sequence[int], new_tokens: int) -> Speeds:
    """Load, run a few tokens to warm up, then the prompt and greedy decoding of `new_tokens`, whatever they are."""
    del progress  # there is nothing to tell that would not disturb
    return ENGINES[decoder.engine](decoder.path, threads, list(prompt), new_tokens)


def _session(engine: Engine, path: Path, threads: int, prompt: list[int], new: int) -> Speeds:
    found = decode(Progress(), path, threads, prompt, new, engine)
    return Speeds(found.kernel, found.prompt_speed, found.decode_speed)


def _llama(path: Path, threads: int, prompt: list[int], new: int) -> Speeds:
    import xllamacpp  # type: ignore[import-untyped,import-not-found,unused-ignore]

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_parallel = 1
    parameters.n_ctx = len(prompt) + new + WARM_UP
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads

    with _silence():  # llama.cpp writes its log past Python
        server = xllamacpp.Server(parameters)
        _completed(server, prompt[:WARM_UP], WARM_UP)
        found = _completed(server, prompt, new)
        del server
    # Its clock of new tokens starts when it has the first one, which it counts nevertheless.
    decode = 1e3 * (found["predicted_n"] - 1) / found["predicted_ms"]
    return Speeds(None, 1e3 * found["prompt_n"] / found["prompt_ms"], decode)


def _completed(server: Any, tokens: list[int], count: int) -> dict[str, float]:
    """What llama.cpp's server says of the time that a prompt and `count` new tokens took."""
    request = {"prompt": tokens, "n_predict": count, "ignore_eos": True, "cache_prompt": False, "temperature": 0}
    answer = server.handle_completions(request)
    if "timings" not in answer:
        raise UserError(f"refused by llama.cpp: {answer}")
    timings: dict[str, float] = answer["timings"]
    return timings


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Send to nowhere what is written to the descriptors of stdout and stderr."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        for number, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(nowhere)


ENGINES: dict[str, Callable[[Path, int, list[int], int], Speeds]] = {
    "onnxruntime": partial(_session, "onnxruntime"),
    "onnxruntime-genai": partial(_session, "onnxruntime-genai"),
    "llama.cpp": _llama,
}


def weight_bytes(decoder: Decoder) -> int:
    """Bytes of weights that a decoder reads for each token: those of its matrices, not of norms and embedding rows."""
    return _gguf_bytes(decoder.path) if decoder.path.suffix == ".gguf" else _onnx_bytes(decoder.path)


def _onnx_bytes(directory: Path) -> int:
    import onnx

    from skim_runtime.model_directory import ModelDirectory

    graph = onnx.load(ModelDirectory.open(directory).model_file, load_external_data=False).graph
    sizes = {}
    for tensor in graph.initializer:
        length = next((entry.value for entry in tensor.external_data if entry.key == "length"), None)
        sizes[tensor.name] = int(length) if length else onnx.numpy_helper.to_array(tensor).nbytes
    nodes = [node for node in graph.node if (node.domain, node.op_type) in MATMULS]
    return sum(sizes.get(name, 0) for node in nodes for name in node.input)


def _gguf_bytes(path: Path) -> int:
    import gguf

    matrices = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) == 2}
    if "output.weight" in matrices:  # otherwise the embedding is the head, too
        matrices.pop("token_embd.weight", None)
    return sum(matrices.values())
