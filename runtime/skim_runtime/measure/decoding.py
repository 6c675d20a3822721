"""One run of a decoder in a session of its own: a random prompt, and greedy decoding of some tokens.

Generation goes on after an end-of-text token. A few tokens warm the session up: its first call allocates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from skim_runtime.errors import UserError
from skim_runtime.genai import GenaiSession
from skim_runtime.generation import generate
from skim_runtime.measure.child import peak_megabytes
from skim_runtime.progress import Progress
from skim_runtime.session import Session

__all__ = ["WARM_UP", "Decoding", "Engine", "decode", "random_prompt"]

Engine = Literal["onnxruntime", "onnxruntime-genai"]

WARM_UP = 8  # tokens, prompt and new ones
ENGINES: dict[Engine, type[Session | GenaiSession]] = {"onnxruntime": Session, "onnxruntime-genai": GenaiSession}


@dataclass(frozen=True)
class Decoding:
    """What one run found.

    Attributes:
        kernel: what multiplied packed weights, as `skim-run` tells it.
        prompt_speed: tokens of the prompt for each second until the first new token.
        decode_speed: new tokens after the first for each second after that.
        peak_megabytes: largest resident memory of the process, mapped weights included.
        tokens: the new ones.
    """

    kernel: str
    prompt_speed: float
    decode_speed: float
    peak_megabytes: float
    tokens: list[int]


def decode(
    progress: Progress,
    directory: Path,
    threads: int,
    prompt: Sequence[int],
    new: int,
    engine: Engine = "onnxruntime",
) -> Decoding:
    """Load, run a few tokens to warm up, then the prompt and greedy decoding; to be called in a child (`in_child`).

    Args:
        progress: there is nothing to tell that would not disturb.
        directory: of the model.
        threads: of the session.
        prompt: its tokens.
        new: tokens to generate.
        engine: what runs the model.
    """
    del progress
    session = ENGINES[engine](directory, threads=threads)
    generate(session, prompt[:WARM_UP], max_new_tokens=WARM_UP, stop=())
    found = generate(session, prompt, max_new_tokens=new, stop=())
    return Decoding(session.kernel, found.prompt_speed, found.decode_speed, peak_megabytes(), found.tokens)


def random_prompt(directory: Path, count: int) -> list[int]:
    """Random tokens of the vocabulary that the `genai_config.json` of a model or bundle names.

    Raises:
        UserError: there is none.
    """
    path = directory / "genai_config.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: it says how many tokens there are")
    vocabulary = int(json.loads(path.read_text("utf-8"))["model"]["vocab_size"])
    tokens: list[int] = np.random.default_rng(0).integers(vocabulary, size=count).tolist()
    return tokens
