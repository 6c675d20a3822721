"""Tokens per second of a whole model: the program of its bundle beside onnxruntime on the same model.

Every run is a process of its own, and they take turns; speeds are medians over the rounds. The prompt is random tokens,
and generation goes on after an end-of-text token. The program is not warmed up: its first tokens bring the weights'
pages into its address space, as they do for its users. onnxruntime is, since its first call allocates.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skim_export.measure.child import in_child, peak_megabytes
from skim_runtime.errors import UserError
from skim_runtime.generation import generate
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.progress import Progress
from skim_runtime.session import Session

__all__ = ["ModelRow", "measure_bundle", "read_manifest"]

WARM_UP = 8  # tokens
PROGRAM = "skim_run"


@dataclass(frozen=True)
class ModelRow:
    """One engine with one model.

    Attributes:
        engine: what ran the model, and how it multiplied.
        threads: that it used.
        prompt_speed: prompt tokens per second.
        decode_speed: new tokens after the first per second.
        peak_megabytes: largest resident memory of the process, mapped weights included.
        weight_megabytes: size of the weights' file.
        code_megabytes: size of the program, or of the operator library.
        tokens: those generated.
    """

    engine: str
    threads: int
    prompt_speed: float
    decode_speed: float
    peak_megabytes: float
    weight_megabytes: float
    code_megabytes: float
    tokens: list[int]


@dataclass(frozen=True)
class _Run:
    prompt: float
    decode: float
    peak: float
    tokens: list[int]


def read_manifest(bundle: Path) -> dict[str, Any]:
    """What the manifest of a bundle says.

    Raises:
        UserError: there is none, or the bundle has no program.
    """
    path = bundle / "manifest.json"
    if not path.is_file():
        raise UserError(f"{bundle}: is no bundle, it has no manifest.json; skim-export bundle writes one")
    manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if not (bundle / PROGRAM).is_file():
        raise UserError(f"{bundle}: its program {PROGRAM} is not compiled; run make there")
    return manifest


def measure_bundle(
    bundle: Path, model: Path | None, threads: int, prompt: int, new: int, rounds: int, progress: Progress
) -> list[ModelRow]:
    """Measure the program of a bundle, and onnxruntime with the model that it was made of, if that is given.

    Args:
        bundle: directory with a compiled program for this machine.
        model: directory that skim-export wrote.
        threads: of both.
        prompt: tokens of the prompt.
        new: tokens to generate.
        rounds: how often.
        progress: told about each run.

    Raises:
        UserError: something is missing, or the program refuses.
    """
    read_manifest(bundle)
    vocabulary = _vocabulary(bundle)
    tokens = np.random.default_rng(0).integers(vocabulary, size=prompt).tolist()
    program: list[_Run] = []
    onnxruntime: list[_Run] = []
    progress.start("decoding", rounds * (1 if model is None else 2))
    for _ in range(rounds):
        program.append(_program(bundle, threads, tokens, new))
        progress.step(PROGRAM)
        if model is not None:
            onnxruntime.append(in_child(_onnxruntime, model, threads, tokens, new))
            progress.step("onnxruntime")
    progress.finish()
    weights = (bundle / "weights.bin").stat().st_size
    rows = [_row(f"{PROGRAM} of the bundle", threads, program, weights, (bundle / PROGRAM).stat().st_size)]
    if model is not None:
        directory = ModelDirectory.open(model)
        data = sum(path.stat().st_size for path in directory.path.glob("model.onnx*"))
        library = directory.path / "libskim_ops.so"
        code = library.stat().st_size if library.is_file() else 0
        rows.append(_row("onnxruntime", threads, onnxruntime, data, code))
    return rows


def _row(engine: str, threads: int, runs: list[_Run], weights: int, code: int) -> ModelRow:
    return ModelRow(
        engine=engine,
        threads=threads,
        prompt_speed=statistics.median(run.prompt for run in runs),
        decode_speed=statistics.median(run.decode for run in runs),
        peak_megabytes=max(run.peak for run in runs),
        weight_megabytes=weights / 1e6,
        code_megabytes=code / 1e6,
        tokens=runs[0].tokens,
    )


def _vocabulary(bundle: Path) -> int:
    path = bundle / "genai_config.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: it says how many tokens there are")
    return int(json.loads(path.read_text("utf-8"))["model"]["vocab_size"])


def _program(bundle: Path, threads: int, tokens: list[int], new: int) -> _Run:
    command = [f"./{PROGRAM}", "--json", "-e", "-1", "-t", str(threads), "-n", str(new), "weights.bin"]
    text = " ".join(map(str, tokens))
    try:
        done = subprocess.run(command, cwd=bundle, input=text, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"{bundle / PROGRAM} does not run on this machine: {error.strerror}") from error
    if done.returncode != 0:
        raise UserError(f"{bundle / PROGRAM} failed: {done.stderr.strip() or f'code {done.returncode}'}")
    found = json.loads(done.stdout)
    return _Run(
        prompt=found["prompt_tokens"] / found["prompt_seconds"],
        decode=found["decode_tokens"] / found["decode_seconds"] if found["decode_tokens"] else 0.0,
        peak=found["peak_memory_bytes"] / 1e6,
        tokens=found["tokens"],
    )


def _onnxruntime(progress: Progress, model: Path, threads: int, tokens: list[int], new: int) -> _Run:
    del progress  # there is nothing to tell that would not disturb
    session = Session(model, threads=threads)
    generate(session, tokens[:WARM_UP], max_new_tokens=WARM_UP, stop=())
    found = generate(session, tokens, max_new_tokens=new, stop=())
    return _Run(found.prompt_speed, found.decode_speed, peak_megabytes(), found.tokens)
