"""Exported directories: whatever is wrong with one, it runs, or is refused in one line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from random import Random

from google.protobuf.message import DecodeError

from skim_runtime import Session, Tokenizer, UserError, generate, verify
from skim_runtime.onnx_file import ModelProto

from . import mutate
from .refusal import check_refusal

__all__ = ["attempt", "make"]

JSON = ("genai_config.json", "tokenizer.json", "tokenizer_config.json", "export.json")
MODELS = ("model", "mixture")
GRAPH, DATA = "model.onnx", "model.onnx.data"


def make(directory: Path) -> None:
    """Export tiny models with random weights."""
    from ..runtime.conftest import build_packed
    from ..tiny_decoders import tiny_decoder
    from ..tiny_models import tiny_llama

    for name, checkpoint in {
        "model": tiny_llama(directory / "hf", layers=1),
        "mixture": tiny_decoder("qwen3-moe", directory / "experts", num_hidden_layers=1),
    }.items():
        build_packed(checkpoint, directory / name, accuracy_level=4)
        shutil.rmtree(checkpoint)
        _list_files(directory / name)


def _list_files(model: Path) -> None:
    (model / "libskim_ops.so").unlink()
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in model.iterdir()
    }
    (model / "export.json").write_text(json.dumps({"files": files}))


def attempt(original: Path, random: Random, place: Path) -> bool:
    """Run a damaged copy; whether it was accepted. What is no refusal is raised."""
    model = shutil.copytree(original / random.choice(MODELS), place / "model")
    if random.randrange(3):
        (model / "export.json").unlink()  # other sizes would be noticed at once
    for _ in range(random.choice((1, 1, 2))):
        _damage(random, model)
    try:
        if random.randrange(10) == 0:
            verify(model)
        tokenizer = Tokenizer(model)
        # The template runs in a process of its own, which takes longer than all the rest.
        tokens = tokenizer.prompt("The quick brown fox", raw=random.randrange(50) > 0)
        generation = generate(Session(model, threads=1), tokens[:40], max_new_tokens=3)
        tokenizer.decode(generation.tokens)
    except UserError as error:
        check_refusal(error)
        return False
    return True


def _damage(random: Random, model: Path) -> None:
    file = model / random.choice((GRAPH, GRAPH, DATA, *JSON, "chat_template.jinja"))
    if not file.is_file():
        return
    content = file.read_bytes()
    if random.randrange(3) == 0:
        mutate.in_file(random, file)
    elif file.name == GRAPH:
        with contextlib.suppress(DecodeError):  # damaged before
            message = ModelProto.FromString(content)
            mutate.in_message(random, message)
            file.write_bytes(message.SerializeToString())
    elif file.name in JSON:
        file.write_bytes(mutate.in_json(random, content))
    else:
        file.write_bytes(mutate.in_bytes(random, content))
