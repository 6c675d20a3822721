"""A whole model in onnxruntime: logits beside those of the CPU, tokens per second, memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
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
BOUND = 0.03  # of the logits: both have float16 activations, and round at other places
RUNS = 3
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def run(work: Work) -> None:
    """Measure the model that the step is about.

    Raises:
        UserError: there is none, it does not run on the GPU, or its logits are others than the CPU's.
    """
    use_built(work.directory)  # for the stand-in: the operators for CUDA, emulated
    model, found = (_large if work.step == "large_model" or work.target.stand_in else _carried)(work)
    sizes = work.target.sizes
    tokens = random_prompt(model, sizes.prompt)
    free = _free_memory(work)
    session = Session(model)
    if session.device != "cuda" and not work.target.stand_in:
        raise UserError(f"{model.name} runs on the CPU, with kernel {session.kernel}: see the log")
    logits = session.logits(tokens)
    expected = in_child(_logits_of_cpu, model, None if work.target.stand_in else work.directory, tokens)
    error = float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))
    found |= {
        "model": model.name,
        "kernel": session.kernel,
        "weight_bytes": session.weight_bytes,
        "error": error,
        "bound": BOUND,
        "same_best_tokens": float(np.mean(logits.argmax(axis=1) == expected.argmax(axis=1))),
    }
    work.save(found)
    runs = [generate(session, tokens, max_new_tokens=sizes.new, stop=()) for _ in range(RUNS)]
    speed = max(run.decode_speed for run in runs)
    bandwidth = read_bandwidth(work.target.device)
    found |= {
        "prompt": sizes.prompt,
        "new": sizes.new,
        "prompt_speeds": [run.prompt_speed for run in runs],
        "decode_speeds": [run.decode_speed for run in runs],
        "bandwidth": bandwidth.bytes_per_second,
        "bandwidth_share": speed * session.weight_bytes / bandwidth.bytes_per_second,
        "device_megabytes": (free - _free_memory(work)) / 1e6,
    }
    work.save(found)
    say(f"{found}")
    if not error < BOUND:
        raise UserError(f"{model.name}: its logits are wrong: off by {error:.2g}")


def _carried(work: Work) -> tuple[Path, dict[str, Any]]:
    """The model that came in parts.

    Raises:
        UserError: none did.
    """
    models = sorted((work.directory / CARGO).glob("*/model.onnx"))
    if not models:
        raise UserError("no model was carried: give its directory to python benchmarks parcels")
    return models[0].parent, {}


def _large(work: Work) -> tuple[Path, dict[str, Any]]:
    """Blocks of random weights, quantized here on the device; a tiny model for the stand-in."""
    from skim_export import export

    checkpoint, output = work.directory / f"{work.step}-checkpoint", work.directory / work.step
    if not checkpoint.exists():
        config = {**COMMON, **CONFIGS["mistral-7b"], "num_hidden_layers": BLOCKS}
        if work.target.stand_in:
            config |= {**TINY, "vocab_size": 300, "max_position_embeddings": 64}
        make_checkpoint(config, checkpoint, 0, Progress())
    device = "cpu" if work.target.stand_in else "cuda"
    report = export(
        str(checkpoint), output / "model.onnx", bits=BITS, effort="weights", ep="cuda", device=device, check=False,
        force=True,
    )  # fmt: skip
    found: dict[str, Any] = {"export_seconds": report.seconds}
    work.save(found)
    return output, found


def _free_memory(work: Work) -> int:
    """Bytes of the device's memory that nobody has."""
    if work.target.stand_in:
        return 0
    torch.cuda.empty_cache()
    free: int = torch.cuda.mem_get_info(work.target.place)[0]
    return free


def _logits_of_cpu(
    progress: Progress, model: Path, directory: Path | None, tokens: list[int]
) -> npt.NDArray[np.float32]:
    """The same graph with the kernels for the CPU, of what was built in `directory` or else is installed."""
    del progress
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if directory is not None:
        use_built(directory)
    return Session(model).logits(tokens)
