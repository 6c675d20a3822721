"""A Hugging Face directory, read tensor by tensor: a model may be larger than memory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skim_export.work.files import sha256
from skim_runtime.errors import UserError, foreign_errors
from skim_runtime.model_files import is_file_name
from skim_runtime.progress import Progress

from .text_part import has_text_part, text_config, text_tensor

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "StoredTensor"]

WEIGHTS = "*.safetensors"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_config.json"
# What a directory may have in place of them.
OTHER_WEIGHTS = {
    **dict.fromkeys(("*.bin", "*.pt", "*.pth"), "pickled weights, which are never unpickled"),
    "*.gguf": "GGUF files",
    "consolidated*": "weights in their maker's own layout",
    WEIGHTS: "safetensors that no index names",
}
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
LARGEST = 65504.0  # of float16, in which codebooks and scales are stored; no weight of a sound model comes near
CHECKED_VALUES = 1 << 24  # of a tensor at once
DIGESTED = ("*.json", "*.jinja", "tokenizer.model")  # beside the weights
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, and what it is."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


class Checkpoint:
    """The configuration, tensors and tokenizer of one model directory.

    Opening reads headers only: every safetensors file is checked to be complete, no weight is loaded. A file is mapped
    while a tensor is read out of it and no longer, so that its pages do not add up in the process's memory.

    Args:
        path: directory with config.json and model.safetensors, or an index and its shards.

    Raises:
        UserError: a file is missing, damaged, pickled or of a quantized model.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise UserError(f"model {path} is not a directory with config.json and safetensors")
        self.path = path
        for pattern in (*DIGESTED, WEIGHTS):
            for file in path.glob(pattern):
                check_file(file)
        self.raw_config = _read_json(path / "config.json")
        quantized = self.raw_config.get("quantization_config")
        if quantized is not None:
            method = quantized.get("quant_method", "unknown method") if isinstance(quantized, dict) else quantized
            raise UserError(f"model {path} is already quantized ({method}): give the full-precision checkpoint")
        self._stored = {name: stored for file in _safetensors(path) for name, stored in _contents(file).items()}
        packed = next((name for name in self._stored if name.endswith((".qweight", ".weight_packed"))), None)
        if packed is not None:
            raise UserError(f"model {path} is already quantized (tensor {packed}): give the full-precision checkpoint")
        self._replaced: tuple[Mapping[str, torch.Tensor], ...] = ()
        if has_text_part(self.raw_config):
            self.raw_config = text_config(self.raw_config, str(path / "config.json"))
            self._stored = {text: s for name, s in self._stored.items() if (text := text_tensor(name)) is not None}

    def __reduce__(self) -> tuple[type[Checkpoint], tuple[Path]]:
        """Another process opens the directory for itself."""
        if self._replaced:
            raise TypeError("a checkpoint with replaced tensors cannot be pickled")
        return Checkpoint, (self.path.resolve(),)

    def replacing(self, tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
        """The same checkpoint with other values, float32, in some of its tensors."""
        other = Checkpoint(self.path)
        other._replaced = (tensors, *self._replaced)
        return other

    @property
    def architecture_name(self) -> str:
        """The model class that config.json names, e.g. "LlamaForCausalLM"."""
        names = self.raw_config.get("architectures") or []
        if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
            raise UserError(f"{self.path / 'config.json'} must name one architecture, it has {names}")
        return names[0]

    @cached_property
    def config(self) -> Any:
        """The transformers configuration; code that comes with a model is never run."""
        from transformers import AutoConfig

        with foreign_errors(f"{self.path / 'config.json'} is no configuration that transformers reads"):
            config = AutoConfig.from_pretrained(self.path, trust_remote_code=False)
            if has_text_part(_read_json(self.path / "config.json")):
                config = type(config.get_text_config()).from_dict(self.raw_config)
            return config

    @cached_property
    def parameter_count(self) -> int:
        """Number of values in all tensors of the files."""
        return sum(math.prod(stored.shape) for stored in self._stored.values())

    @property
    def file_bytes(self) -> int:
        """Bytes of all files with weights."""
        return sum(file.stat().st_size for file in {stored.file for stored in self._stored.values()})

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._stored)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._stored

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._find(name).shape

    def tensor(self, name: str, rows: slice = slice(None)) -> torch.Tensor:
        """Read one tensor as float32, or some of its rows.

        Raises:
            UserError: it is missing, not of a floating-point type, or holds a value that is not finite or too large.
        """
        import torch

        for tensors in self._replaced:
            if (replaced := tensors.get(name)) is not None:
                return replaced[rows]
        stored = self._find(name)
        if stored.dtype not in FLOAT_TYPES:
            expected = ", ".join(FLOAT_TYPES)
            raise UserError(f"tensor {name} in {stored.file} has type {stored.dtype}; expected {expected}")
        # Copied even where it is float32, or else the tensor would keep the file mapped.
        tensor: torch.Tensor = _open(stored.file).get_slice(stored.name)[rows].to(torch.float32, copy=True)
        if tensor.numel() and not (largest := tensor.abs().max().item()) <= LARGEST:
            what = f"a value of {largest:.3g}; {LARGEST:g} at most" if math.isfinite(largest) else "NaN or infinity"
            raise UserError(f"tensor {name} in {stored.file} holds {what}")
        return tensor

    def check_values(self, progress: Progress) -> None:
        """Read all tensors once, so that a value that can't be exported is found before any work.

        Raises:
            UserError: see `tensor`.
        """
        progress.start("checking the weights", len(self._stored))
        for name in self.names:
            shape = self.shape(name)
            rows = shape[0] if shape else 1
            step = max(1, CHECKED_VALUES * rows // max(1, math.prod(shape)))
            for start in range(0, rows, step):
                self.tensor(name, slice(start, start + step)) if shape else self.tensor(name)
            progress.step(name)
        progress.finish()

    def digest(self, progress: Progress) -> str:
        """SHA-256 of the configuration, the weights and the tokenizer: of all files that an export depends on."""
        weights = {stored.file for stored in self._stored.values()}
        others = {file for pattern in DIGESTED for file in self.path.glob(pattern)}
        digest = hashlib.sha256()
        progress.start("hashing the model", len(weights | others))
        for file in sorted(weights | others):
            digest.update(f"{file.name} {sha256(file)}\n".encode())
            progress.step(file.name)
        progress.finish()
        return digest.hexdigest()

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, as transformers loads it.

        Raises:
            UserError: there is none, or it cannot be loaded.
        """
        from transformers import AutoTokenizer

        found = [file for file in TOKENIZER_FILES if (self.path / file).is_file()]
        if not found:
            raise UserError(f"model {self.path} has no tokenizer: {' or '.join(TOKENIZER_FILES)} is missing")
        if TOKENIZER_FILES[0] not in found:
            _require_reader(self.path / found[0])
        with foreign_errors(f"the tokenizer of model {self.path} cannot be loaded"):
            return AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)

    def _find(self, name: str) -> StoredTensor:
        if name not in self._stored:
            raise UserError(f"model {self.path} has no tensor {name}")
        return self._stored[name]


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


def _require_reader(tokenizer: Path) -> None:
    """Find out whether transformers has what it needs to read a tokenizer.model."""
    with tokenizer.open("rb") as file:
        package = "sentencepiece" if file.read(1) == b"\n" else "tiktoken"  # a protobuf message, or lines of base64
    if find_spec(package) is None:
        raise UserError(f"{tokenizer}: to read it, install the package {package}: pip install {package}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes(), parse_float=_finite, parse_constant=_finite)
    except FileNotFoundError as error:
        raise UserError(f"model {path.parent} has no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object")
    return content


def _safetensors(path: Path) -> list[Path]:
    """The files with weights: the single file, or else all shards of the index, as transformers chooses."""
    if (path / ADAPTER).is_file():
        raise UserError(f"model {path} has a LoRA adapter ({ADAPTER}): merge it into the model first")
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    if (path / INDEX).is_file():
        weight_map = _read_json(path / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{path / INDEX} has no weight_map")
        for tensor, name in weight_map.items():
            if not is_file_name(name):
                raise UserError(f"{path / INDEX}: {tensor} is in {name!r}; expected the name of a file beside it")
        return [path / name for name in sorted(set(weight_map.values()))]
    for pattern, what in OTHER_WEIGHTS.items():
        if found := sorted(file.name for file in path.glob(pattern)):
            raise UserError(f"model {path} has only {what} ({found[0]}): use safetensors as transformers saves them")
    raise UserError(f"model {path} has no {SINGLE} and no {INDEX}")


def _contents(file: Path) -> dict[str, StoredTensor]:
    opened = _open(file)
    slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    return {name: StoredTensor(file, name, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing: the index names it") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged or incomplete: {error}") from error
