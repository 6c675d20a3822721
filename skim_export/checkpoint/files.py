"""The files of a model's directory: which of them hold its weights, and that each is an ordinary one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from skim_runtime.errors import UserError
from skim_runtime.model_files import is_file_name

from .gguf import find_gguf

__all__ = ["ADAPTER", "WEIGHTS", "check_file", "gguf_files", "read_json", "weight_files"]

WEIGHTS = "*.safetensors"
ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth")
# What a directory may have in place of them.
OTHER_WEIGHTS = {
    "consolidated*": "weights in their maker's own layout",
    WEIGHTS: "safetensors that no index names",
}


def check_file(path: Path) -> None:
    """Find out whether a file of a model is to be read: an ordinary one, in its directory.

    A link may lead elsewhere in the cache of the Hugging Face Hub only, which has directories of links.

    Raises:
        UserError: it is something else, or lies elsewhere.
    """
    found, directory = path.resolve(), path.parent.resolve()
    places = [directory]
    if directory.parent.name == "snapshots":
        places.append(directory.parent.parent / "blobs")
    if not any(found.is_relative_to(place) for place in places):
        raise UserError(f"{path}: is a link to {found}, which is outside of the model's directory: copy the file there")
    if found.exists() and not found.is_file():
        raise UserError(f"{path}: is no ordinary file")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        content = json.loads(path.read_bytes(), parse_float=_finite, parse_constant=_finite)
    except FileNotFoundError as error:
        raise UserError(f"model {path.parent} has no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object")
    return content


def gguf_files(source: Path) -> tuple[Path, ...] | None:
    """The parts of a GGUF model; None if the source is something else, or a directory that has other weights, too.

    Raises:
        UserError: a part is missing, or the directory holds several models.
    """
    if any((source / name).is_file() for name in (SINGLE, INDEX, ADAPTER)):
        return None
    files = find_gguf(source)
    for file in files or () if source.is_dir() else ():
        check_file(file)
    return files


def weight_files(path: Path) -> list[Path]:
    """The files with weights: the single file, or else all shards of the index, as transformers chooses.

    Raises:
        UserError: there are none, or others only.
    """
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    if (path / INDEX).is_file():
        weight_map = read_json(path / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{path / INDEX} has no weight_map")
        for tensor, name in weight_map.items():
            if not is_file_name(name):
                raise UserError(f"{path / INDEX}: {tensor} is in {name!r}; expected the name of a file beside it")
        return [path / name for name in sorted(set(weight_map.values()))]
    if pickled := sorted(file.name for pattern in PICKLED for file in path.glob(pattern)):
        raise UserError(
            f"model {path} has only pickled weights, which are never unpickled ({pickled[0]}): look on the Hugging "
            "Face Hub for safetensors of the same model, or, if you trust the files, let transformers write them: "
            f'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
            f"[c.from_pretrained('{path}').save_pretrained('{path}-safetensors') for c in (M, T)]\""
        )
    for pattern, what in OTHER_WEIGHTS.items():
        if found := sorted(file.name for file in path.glob(pattern)):
            raise UserError(f"model {path} has only {what} ({found[0]}): use safetensors as transformers saves them")
    raise UserError(f"model {path} has no {SINGLE} and no {INDEX}")
