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
from functools import partial
from pathlib import Path
from typing import Any

from skim_runtime.errors import UserError
from skim_runtime.library import library_path
from skim_runtime.measure.child import in_child
from skim_runtime.measure.decoding import Decoding, decode, random_prompt
from skim_runtime.measure.rounds import take_turns
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.progress import Progress

__all__ = ["ModelRow", "measure_bundle", "read_manifest"]

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
    tokens = random_prompt(bundle, prompt)
    contenders = {PROGRAM: partial(_program, bundle, threads, tokens, new)}
    if model is not None:
        contenders["onnxruntime"] = partial(in_child, decode, model, threads, tokens, new)
    runs = take_turns(contenders, rounds, progress, "decoding")
    weights = (bundle / "weights.bin").stat().st_size
    rows = [_row(f"{PROGRAM} of the bundle", threads, runs[PROGRAM], weights, (bundle / PROGRAM).stat().st_size)]
    if model is not None:
        directory = ModelDirectory.open(model)
        data = sum(path.stat().st_size for path in directory.path.glob("model.onnx*"))
        rows.append(_row("onnxruntime", threads, runs["onnxruntime"], data, library_path().stat().st_size))
    return rows


def _row(engine: str, threads: int, runs: list[Decoding], weights: int, code: int) -> ModelRow:
    return ModelRow(
        engine=engine,
        threads=threads,
        prompt_speed=statistics.median(run.prompt_speed for run in runs),
        decode_speed=statistics.median(run.decode_speed for run in runs),
        peak_megabytes=max(run.peak_megabytes for run in runs),
        weight_megabytes=weights / 1e6,
        code_megabytes=code / 1e6,
        tokens=runs[0].tokens,
    )


def _program(bundle: Path, threads: int, tokens: list[int], new: int) -> Decoding:
    command = [f"./{PROGRAM}", "--json", "-e", "-1", "-t", str(threads), "-n", str(new), "weights.bin"]
    text = " ".join(map(str, tokens))
    try:
        done = subprocess.run(command, cwd=bundle, input=text, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"{bundle / PROGRAM} does not run on this machine: {error.strerror}") from error
    if done.returncode != 0:
        raise UserError(f"{bundle / PROGRAM} failed: {done.stderr.strip() or f'code {done.returncode}'}")
    found = json.loads(done.stdout)
    return Decoding(
        kernel=PROGRAM,
        prompt_speed=found["prompt_tokens"] / found["prompt_seconds"],
        decode_speed=found["decode_tokens"] / found["decode_seconds"] if found["decode_tokens"] else 0.0,
        peak_megabytes=found["peak_memory_bytes"] / 1e6,
        tokens=found["tokens"],
    )
