"""A whole model in onnxruntime: logits beside those of the CPU, tokens per second, memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from cuda_check import relative_error
from cuda_speed import read_bandwidth
from synthetic import COMMON, CONFIGS, make_checkpoint

from device_check.built import use_built
from device_check.steps.unpack import CARGO
from device_check.work import Work
from skim_runtime.errors import UserError
from skim_runtime.generation import generate
from skim_runtime.measure.child import in_child
from skim_runtime.measure.decoding import random_prompt
from skim_runtime.measure.tables import say
from skim_runtime.progress import Progress
from skim_runtime.session import Session

__all__ = ["run"]

BITS = 3
BLOCKS = 2  # of the large model
BOUNDS = {
    "float16": 0.03,
    "bfloat16": 0.1,
}  # of the logits: activations are rounded at other places, or to fewer digits
RUNS = 3
CACHES = 2  # times the cache: smaller weights do not all come from memory
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def run(work: Work) -> None:
    """Measure the model that the step is about.

    Raises:
        UserError: there is none, it does not run on the GPU, or its logits are others than the CPU's.
    """
    use_built(work.directory)  # for the stand-in: the operators for CUDA, emulated
    model, found = _model(work)
    sizes = work.target.sizes
    tokens = random_prompt(model, sizes.prompt)
    free, started = _free_memory(work), time.perf_counter()
    session = Session(model)
    found["load_seconds"] = time.perf_counter() - started
    if session.device != "cuda" and not work.target.stand_in:
        raise UserError(f"{model.name} runs on the CPU, with kernel {session.kernel}: see the log")
    # onnxruntime has no bfloat16 for the CPU: the same blocks with float16 are what it is compared with.
    reference = work.directory / "large_model" if work.step == "bfloat16_model" else model
    expected = in_child(_logits_of_cpu, reference, None if work.target.stand_in else work.directory, tokens)
    logits = session.logits(tokens)
    session.reset(len(tokens))
    first = len(tokens) // 2
    steps = np.concatenate([session.step(tokens[:first]), *(session.step([token]) for token in tokens[first:])])
    errors = {"whole": relative_error(logits, expected), "steps": relative_error(steps, expected)}
    bound = BOUNDS["bfloat16" if work.step == "bfloat16_model" else "float16"]
    found |= {
        "model": model.name,
        "kernel": session.kernel,
        "weight_bytes": session.weight_bytes,
        "errors": errors,
        "bound": bound,
        "same_best_tokens": float(np.mean(logits.argmax(axis=1) == expected.argmax(axis=1))),
    }
    work.save(found)
    runs = [generate(session, tokens, max_new_tokens=sizes.new, stop=()) for _ in range(RUNS)]
    speed = max(run.decode_speed for run in runs)
    bandwidth = read_bandwidth(work.target.device)
    share = speed * session.weight_bytes / bandwidth.bytes_per_second
    found |= {
        "prompt": sizes.prompt,
        "new": sizes.new,
        "prompt_speeds": [run.prompt_speed for run in runs],
        "decode_speeds": [run.decode_speed for run in runs],
        "bandwidth": bandwidth.bytes_per_second,
        "bandwidth_share": share if session.weight_bytes > CACHES * work.target.device.cache_bytes else None,
        "device_megabytes": (free - _free_memory(work)) / 1e6,
    }
    work.save(found)
    say(f"{found}")
    for what, error in errors.items():
        if not error < bound:
            raise UserError(f"{model.name}: its logits are wrong, {what}: off by {error:.2g}")


def _model(work: Work) -> tuple[Path, dict[str, Any]]:
    """The directory of the model that the step is about, and what is known of it."""
    if work.step == "small_model" and not work.target.stand_in:
        return _carried(work), {}
    return _made(work)


def _carried(work: Work) -> Path:
    """The model that came in parts.

    Raises:
        UserError: none did.
    """
    models = sorted((work.directory / CARGO).glob("*/model.onnx"))
    if not models:
        raise UserError("no model was carried: give its directory to python benchmarks parcels")
    return models[0].parent


def _made(work: Work) -> tuple[Path, dict[str, Any]]:
    """Blocks of random weights, quantized here on the device; for the stand-in a tiny model, and float16 always."""
    from skim_export import export

    checkpoint, output = work.directory / "checkpoint", work.directory / work.step
    if not checkpoint.exists():
        config = {**COMMON, **CONFIGS["mistral-7b"], "num_hidden_layers": BLOCKS}
        if work.target.stand_in:
            config |= {**TINY, "vocab_size": 300, "max_position_embeddings": 64}
        make_checkpoint(config, checkpoint, 0, Progress())
    report = export(
        str(checkpoint),
        output / "model.onnx",
        bits=BITS,
        effort="weights",
        ep="cuda",
        activations="bfloat16" if work.step == "bfloat16_model" and not work.target.stand_in else "float16",
        device="cpu" if work.target.stand_in else "cuda",
        check=False,
        force=True,
    )
    found: dict[str, Any] = {"export_seconds": report.seconds}
    work.save(found)
    return output, found


def _free_memory(work: Work) -> int:
    """Bytes of the device's memory that nobody has."""
    if work.target.stand_in:
        return 0
    torch.cuda.empty_cache()
    free: int = torch.cuda.mem_get_info(work.target.device.place)[0]
    return free


def _logits_of_cpu(
    progress: Progress, model: Path, directory: Path | None, tokens: list[int]
) -> npt.NDArray[np.float32]:
    """The same graph with the kernels for the CPU, of what was built in `directory` or else is installed."""
    del progress
    if directory is not None:
        use_built(directory)
    return Session(model, ep="cpu").logits(tokens)
