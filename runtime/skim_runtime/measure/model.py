"""Speed and memory of one exported model, beside the speed at which the same number of threads reads memory.

Every run is a process of its own, and a process that only reads memory takes turns with it: that of the GPU, if the
model runs there. Speeds are medians over the rounds; what they are a share of is the best reading.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from skim_runtime.library import library_path
from skim_runtime.measure.bandwidth import Bandwidth, read_bandwidth, read_gpu
from skim_runtime.measure.child import in_child
from skim_runtime.measure.decoding import Decoding, decode, random_prompt
from skim_runtime.measure.report import last_level_cache
from skim_runtime.measure.rounds import take_turns
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.progress import Progress

__all__ = ["ModelSpeed", "measure_model"]

CACHES = 4  # times the last-level cache: what is read


@dataclass(frozen=True)
class ModelSpeed:
    """What was found.

    Attributes:
        kernel: what multiplied packed weights, as `skim-run` tells it.
        threads: of the session.
        prompt_speed: prompt tokens per second.
        decode_speed: new tokens after the first per second.
        weight_bytes: bytes of weights that each new token reads; 0 if the model has no packed ones.
        gigabytes_per_second: of weights, while decoding.
        bandwidth: how fast memory alone was read.
        bandwidth_share: the former over the latter.
        peak_megabytes: largest resident memory of a process that ran the model, mapped weights included.
    """

    kernel: str
    threads: int
    prompt_speed: float
    decode_speed: float
    weight_bytes: int
    gigabytes_per_second: float
    bandwidth: Bandwidth
    bandwidth_share: float
    peak_megabytes: float


def measure_model(directory: Path, threads: int, prompt: int, new: int, rounds: int, progress: Progress) -> ModelSpeed:
    """Measure a model that skim-export wrote.

    Args:
        directory: of the model.
        threads: of the session.
        prompt: tokens of the prompt, which are random.
        new: tokens to generate, at least 2.
        rounds: medians are over so many.
        progress: told about each run.

    Raises:
        UserError: a file is missing or damaged, or the tokens do not fit the model's context.
    """
    weight_bytes = ModelDirectory.open(directory).graph.weight_bytes
    tokens = random_prompt(directory, prompt)
    runs: list[Decoding] = []
    readings: list[Bandwidth] = []
    take_turns(
        {
            "decoding": lambda: runs.append(in_child(decode, directory, threads, tokens, new)),
            "reading memory": lambda: readings.append(
                in_child(_read_gpu)
                if runs[-1].kernel == "cuda"
                else in_child(read_bandwidth, threads, CACHES * last_level_cache())
            ),
        },
        rounds,
        progress,
    )
    decode_speed = statistics.median(run.decode_speed for run in runs)
    bandwidth = max(readings, key=lambda reading: reading.bytes_per_second)
    read = weight_bytes * decode_speed
    return ModelSpeed(
        kernel=runs[0].kernel,
        threads=threads,
        prompt_speed=statistics.median(run.prompt_speed for run in runs),
        decode_speed=decode_speed,
        weight_bytes=weight_bytes,
        gigabytes_per_second=read / 1e9,
        bandwidth=bandwidth,
        bandwidth_share=read / bandwidth.bytes_per_second,
        peak_megabytes=max(run.peak_megabytes for run in runs),
    )


def _read_gpu(progress: Progress) -> Bandwidth:
    del progress
    return read_gpu(library_path())
