"""A Hugging Face directory or a GGUF file, read tensor by tensor: a model may be larger than memory."""

from __future__ import annotations

import copy
import hashlib
import math
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skim_export.work.files import sha256, write_json
from skim_runtime.errors import UserError, foreign_errors
from skim_runtime.progress import Progress

from .adapter import Adapter, base_model
from .cache import cache_directory
from .experts import split_experts
from .files import ADAPTER, WEIGHTS, check_file, gguf_files, read_json, weight_files
from .formats import SETTINGS, float_tensors
from .gguf import GgufHeader, gguf_config, gguf_directory, gguf_tensors
from .tensors import Tensor, stored_tensors
from .text_part import has_text_part, text_config, text_tensor

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint"]

CONFIG = "config.json"
LARGEST = 65504.0  # of float16, in which codebooks and scales are stored; no weight of a sound model comes near
CHECKED_VALUES = 1 << 24  # of a tensor at once
DIGESTED = ("*.json", "*.jinja", "tokenizer.model")  # beside the weights
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


class Checkpoint:
    """The configuration, tensors and tokenizer of one model.

    Opening reads headers only: every file of weights is checked to be complete, no weight is loaded. Weights that are
    quantized are made float when they are read, and those that an adapter changes are changed.

    Args:
        source: directory with config.json and model.safetensors, or an index and its shards; or a GGUF file, any part
            of one that is split, or a directory with one GGUF model.
        adapter: directory of a LoRA adapter to merge.

    Attributes:
        source: what was opened.
        path: the directory with the configuration and the tokenizer: the same, or what the cache has for a GGUF model.
        files: the files with weights.
        raw_config: what config.json says of the text model, but for how it is quantized.
        quantization: what the weights were stored as, e.g. "awq, 4 bits"; None for a model in full precision.
        adapter: the adapter.
        adapted: names of the tensors that it changes.

    Raises:
        UserError: a file is missing, damaged, pickled or quantized in a way that cannot be read; the adapter is no
            adapter of this model.
    """

    def __init__(self, source: Path, adapter: Path | None = None) -> None:
        self.source = source
        self._tensors: dict[str, Tensor] = {}
        self.raw_config: dict[str, Any]
        self.quantization: str | None
        if (gguf := gguf_files(source)) is not None:
            self._open_gguf(gguf)
        else:
            self._open_directory(adapter)
        self.adapter = None if adapter is None else Adapter(adapter)
        changed = {} if self.adapter is None else self.adapter.merged(self._tensors)
        self._tensors.update(changed)
        self.adapted = frozenset(changed)
        self._is_part = has_text_part(self.raw_config)
        if self._is_part:
            self.raw_config = text_config(self.raw_config, str(self.path / CONFIG))
            names = {name: text_tensor(name) for name in self._tensors}
            self._tensors = {text: self._tensors[name] for name, text in names.items() if text is not None}
        self._tensors = split_experts(self._tensors)
        self._replaced: tuple[Mapping[str, torch.Tensor], ...] = ()

    def _open_gguf(self, files: tuple[Path, ...]) -> None:
        header = GgufHeader.read(files)
        config = gguf_config(header)
        self._tensors.update(gguf_tensors(header, config))
        self.path = gguf_directory(header, config, cache_directory())
        self.files = list(files)
        self.raw_config = read_json(self.path / CONFIG)
        self.quantization = header.quantization

    def _open_directory(self, adapter: Path | None) -> None:
        self.path = path = self.source
        if not path.is_dir():
            raise UserError(f"model {path} is not a directory with config.json and safetensors, nor a GGUF file")
        for pattern in (*DIGESTED, WEIGHTS):
            for file in path.glob(pattern):
                check_file(file)
        _check_adapter(path, adapter)
        self.raw_config = read_json(path / CONFIG)
        settings = self.raw_config.pop(SETTINGS, None)
        if has_text_part(self.raw_config):
            within = self.raw_config["text_config"].pop(SETTINGS, None)
            settings = within if settings is None else settings
        self.files = weight_files(path)
        tensors, self.quantization = float_tensors(path, settings, stored_tensors(self.files))
        self._tensors.update(tensors)

    def __reduce__(self) -> tuple[type[Checkpoint], tuple[Path, Path | None]]:
        """Another process opens the model for itself."""
        if self._replaced:
            raise TypeError("a checkpoint with replaced tensors cannot be pickled")
        return Checkpoint, (self.source.resolve(), None if self.adapter is None else self.adapter.path.resolve())

    def replacing(self, tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
        """The same checkpoint with other values, float32, in some of its tensors."""
        other = Checkpoint(self.source, None if self.adapter is None else self.adapter.path)
        other._replaced = (tensors, *self._replaced)
        return other

    @property
    def architecture_name(self) -> str:
        """The model class that config.json names, e.g. "LlamaForCausalLM"."""
        names = self.raw_config.get("architectures") or []
        if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
            raise UserError(f"{self.path / CONFIG} must name one architecture, it has {names}")
        return names[0]

    @cached_property
    def config(self) -> Any:
        """The transformers configuration; code that comes with a model is never run."""
        from transformers import AutoConfig

        with foreign_errors(f"{self.path / CONFIG} is no configuration that transformers reads"):
            return AutoConfig.from_pretrained(self.plain_directory, trust_remote_code=False)

    @property
    def is_plain(self) -> bool:
        """Whether files are a text model in full precision and nothing else, as other libraries load it."""
        return self.path == self.source and self.quantization is None and not self._is_part

    @cached_property
    def plain_directory(self) -> Path:
        """Where configuration and tokenizer lie as a text model in full precision has them, for other libraries.

        It is `path`; of quantized safetensors, or of more than a text model, a copy, which is removed with this object.
        """
        if self.is_plain or (self.path != self.source and not self._is_part):
            return self.path
        directory = Path(tempfile.mkdtemp(prefix="skim-plain-"))
        weakref.finalize(self, shutil.rmtree, directory)
        for pattern in DIGESTED:
            for file in self.path.glob(pattern):
                (directory / file.name).symlink_to(file.resolve())
        (directory / CONFIG).unlink()
        write_json(directory / CONFIG, self.raw_config)
        return directory

    @property
    def uniform_config(self) -> Any:
        """A copy of the configuration, without what single layers have of their own: sizes of heads, for example."""
        config = copy.deepcopy(self.config)
        config.per_layer_config = None
        return config

    @cached_property
    def parameter_count(self) -> int:
        """Number of values in all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self._tensors.values())

    @property
    def file_bytes(self) -> int:
        """Bytes of all files with weights."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._tensors)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._find(name).shape

    def tensor(self, name: str, rows: slice = slice(None)) -> torch.Tensor:
        """Read one tensor as float32, or some of its rows.

        Raises:
            UserError: it is missing, not of a floating-point type, or holds a value that is not finite or too large.
        """
        for tensors in self._replaced:
            if (replaced := tensors.get(name)) is not None:
                return replaced[rows]
        found = self._find(name)
        tensor = found.read(rows)
        if tensor.numel() and not (largest := tensor.abs().max().item()) <= LARGEST:
            what = f"a value of {largest:.3g}; {LARGEST:g} at most" if math.isfinite(largest) else "NaN or infinity"
            raise UserError(f"tensor {name} in {found.file} holds {what}")
        return tensor

    def check_values(self, progress: Progress) -> None:
        """Read all tensors once, so that a value that can't be exported is found before any work.

        Raises:
            UserError: see `tensor`.
        """
        progress.start("checking the weights", len(self._tensors))
        for name in self.names:
            shape = self.shape(name)
            rows = shape[0] if shape else 1
            step = max(1, CHECKED_VALUES * rows // max(1, math.prod(shape)))
            for start in range(0, rows, step):
                self.tensor(name, slice(start, start + step))
            progress.step(name)
        progress.finish()

    def digest(self, progress: Progress) -> str:
        """SHA-256 of configuration, weights, tokenizer and adapter: of all files that an export depends on."""
        others = {file for pattern in DIGESTED for file in self.path.glob(pattern)}
        files = sorted({*self.files, *others})
        if self.adapter is not None:
            files += self.adapter.files
        digest = hashlib.sha256()
        progress.start("hashing the model", len(files))
        for file in files:
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

    def _find(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise UserError(f"model {self.source} has no tensor {name}")
        return self._tensors[name]


def _check_adapter(path: Path, adapter: Path | None) -> None:
    """Find out whether a directory has an adapter that nobody has asked for: transformers would load it.

    Raises:
        UserError: it has.
    """
    if not (path / ADAPTER).is_file() or (adapter is not None and adapter.resolve() == path.resolve()):
        return
    if not (path / CONFIG).is_file():
        raise UserError(
            f"model {path} is a LoRA adapter ({ADAPTER}): give the base model as --model ({base_model(path)}) and "
            f"this directory as --adapter"
        )
    raise UserError(
        f"model {path} has a LoRA adapter beside its weights ({ADAPTER}): merge it with --adapter {path}, or move "
        f"{ADAPTER} away"
    )


def _require_reader(tokenizer: Path) -> None:
    """Find out whether transformers has what it needs to read a tokenizer.model."""
    with tokenizer.open("rb") as file:
        package = "sentencepiece" if file.read(1) == b"\n" else "tiktoken"  # a protobuf message, or lines of base64
    if find_spec(package) is None:
        raise UserError(f"{tokenizer}: to read it, install the package {package}: pip install {package}")
