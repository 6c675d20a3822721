"""Checkpoints: whatever is wrong with one, its export runs, or is refused in one line before any work."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from random import Random

from skim_export.pipeline.export import prepare, run
from skim_export.pipeline.options import ExportOptions
from skim_runtime import Session, UserError, generate

from ..tiny_models import tiny_llama, tiny_mistral
from . import mutate
from .refusal import check_refusal

__all__ = ["attempt", "make"]

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
JSON = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX)
NAMES = (  # that config.json may have, and that somebody reads
    "attention_multiplier",
    "hidden_activation",
    "layer_types",
    "logits_scaling",
    "num_local_experts",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "quantization_config",
    "rope_position_scale",
    "rope_scaling",
    "rope_theta",
    "seq_length",
    "sliding_window",
    "softmax_scale",
    "torch_dtype",
    "use_sliding_window",
)
OPTIONS = ExportOptions(bits=3, effort="weights", threads=1)
LENGTH_BYTES = 8  # of the header, before it


def make(directory: Path) -> None:
    """Save tiny models: in one file, and in shards."""
    tiny_llama(directory / "llama", layers=1)
    tiny_mistral(directory / "mistral", layers=1, max_shard_size="100KB")


def attempt(original: Path, random: Random, place: Path) -> bool:
    """Export a damaged copy; whether it was accepted. What is no refusal is raised."""
    model = shutil.copytree(original / random.choice(("llama", "mistral")), place / "model")
    for _ in range(random.choice((1, 1, 2))):
        _damage(random, model)
    output = place / "out" / "model.onnx"
    try:
        job = prepare(str(model), output, OPTIONS)
    except UserError as error:
        check_refusal(error)
        return False
    finally:
        assert not output.parent.exists(), "something was written before any work"
    try:
        run(job)
    except UserError as error:
        # The only thing that is known no earlier: the values of the weights, which are read once.
        if " holds a value of " in str(error) or " holds NaN or infinity" in str(error):
            return False
        raise AssertionError(f"refused late: {error}") from error
    generate(Session(output.parent, threads=1), [2, 3, 5], max_new_tokens=2)
    return True


def _damage(random: Random, model: Path) -> None:
    file = model / random.choice((CONFIG, CONFIG, CONFIG, *JSON, "weights", "weights"))
    if file.name == "weights":
        _damage_weights(random, random.choice(sorted(model.glob("*.safetensors")) or [model / CONFIG]))
    elif not file.is_file():
        return
    elif random.randrange(8) == 0:
        mutate.in_file(random, file)
    else:
        file.write_bytes(mutate.in_json(random, file.read_bytes(), NAMES))


def _damage_weights(random: Random, file: Path) -> None:
    if random.randrange(2) or not file.is_file() or file.suffix != ".safetensors":
        mutate.in_file(random, file)
        return
    content = file.read_bytes()
    if len(content) < LENGTH_BYTES:
        return
    (length,) = struct.unpack("<Q", content[:LENGTH_BYTES])
    header, data = content[LENGTH_BYTES : LENGTH_BYTES + length], content[LENGTH_BYTES + length :]
    header = mutate.in_json(random, header)
    if random.randrange(4) == 0:
        length = random.choice(mutate.STRANGE_NUMBERS[:10])
    file.write_bytes(struct.pack("<q", len(header) if random.randrange(8) else int(length) % (1 << 62)) + header + data)
