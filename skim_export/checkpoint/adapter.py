"""A LoRA adapter, as PEFT saves it, merged into the weights of its base model when they are read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skim_runtime.errors import UserError

from .files import ADAPTER, check_file, read_json
from .tensors import FLOAT_TYPES, StoredTensor, Tensor, stored_tensors

if TYPE_CHECKING:
    import torch

__all__ = ["Adapter", "base_model"]

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of all names, from PEFT's own modules
SAVED = (".modules_to_save", ".base_layer")  # in names of tensors that stand in place of the model's
FACTORS = {  # of a change: their names, and whether their product is the change on its side
    (".lora_A.weight", ".lora_B.weight"): False,
    (".lora_embedding_A", ".lora_embedding_B"): True,
}
# What an adapter may say that it is more than a product of two matrices for some weights; each unset by default.
VARIANTS = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)
INITIAL = (True, False, "gaussian", "eva", "orthogonal")  # ways to begin that leave the model's weights as they are
BLOCK = 512  # rows of a product


@dataclass(frozen=True)
class _Merged:
    """A weight with its change: `W + scaling * B A`, or `W + scaling * (B A)^T`.

    Products are summed in float64, always in the same blocks of rows: whatever run of rows is read, the values are the
    same.
    """

    base: Tensor
    a: StoredTensor
    b: StoredTensor
    scaling: float
    transposed: bool

    @property
    def file(self) -> Path:
        return self.base.file

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def read(self, rows: slice) -> torch.Tensor:
        import torch

        weight = self.base.read(rows)
        left, right = (self.a, self.b) if self.transposed else (self.b, self.a)
        factors = [factor.read(slice(None)).to(torch.float64) for factor in (left, right)]
        left_factor, right_factor = (factor.T for factor in factors) if self.transposed else factors
        start, stop, _ = rows.indices(self.shape[0])
        for first in range(start - start % BLOCK, stop, BLOCK):
            change = self.scaling * (left_factor[first : first + BLOCK] @ right_factor)
            begin, end = max(first, start), min(first + BLOCK, stop)
            weight[begin - start : end - start] += change[begin - first : end - first].to(torch.float32)
        return weight


@dataclass(frozen=True)
class Adapter:
    """An adapter's directory.

    Raises:
        UserError: it is none, of another kind, or of a variant that cannot be merged.
    """

    path: Path

    def __post_init__(self) -> None:
        if not (self.path / ADAPTER).is_file():
            raise UserError(f"--adapter {self.path}: is no directory with {ADAPTER} and {WEIGHTS}")
        for file in self.files:
            check_file(file)
        if not (self.path / WEIGHTS).is_file():
            raise UserError(f"--adapter {self.path}: has no {WEIGHTS}, and others are not read: save it so with PEFT")
        kind = self._config.get("peft_type")
        if kind != "LORA":
            raise self._error("peft_type", kind, "only LORA can be merged")
        if (bias := self._config.get("bias", "none")) != "none":
            raise self._error("bias", bias, "only adapters without biases can be merged")
        for name in VARIANTS:
            if self._config.get(name):
                raise self._error(name, self._config[name], "this variant cannot be merged")
        if (initial := self._config.get("init_lora_weights", True)) not in INITIAL:
            raise self._error(
                "init_lora_weights", initial, "it changes the model's own weights: save it as a plain LoRA with PEFT"
            )

    @property
    def files(self) -> list[Path]:
        """All that counts of it."""
        return [self.path / ADAPTER, self.path / WEIGHTS]

    def merged(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of its base model that it changes, changed.

        Raises:
            UserError: the model has no such module, or one of another shape; a tensor is missing, or no part of LoRA.
        """
        stored = {name.removeprefix(PREFIX): tensor for name, tensor in stored_tensors([self.path / WEIGHTS]).items()}
        found: dict[str, Tensor] = {}
        for name, tensor in stored.items():
            if not any(name.endswith(suffix) for pair in FACTORS for suffix in pair):
                target = name
                for part in SAVED:
                    target = target.replace(part, "")
                found[target] = self._replaced(target, tensor, tensors)
        for (first, second), transposed in FACTORS.items():
            modules = {
                name.removesuffix(suffix) for name in stored for suffix in (first, second) if name.endswith(suffix)
            }
            for module in sorted(modules):
                name = f"{module}.weight"
                base = found.get(name) or self._base(name, tensors)
                a, b = (self._factor(stored, f"{module}{suffix}") for suffix in (first, second))
                found[name] = self._merge(module, base, a, b, transposed)
        if not found:
            raise UserError(f"--adapter {self.path}: {WEIGHTS} has no tensors")
        return found

    def _replaced(self, name: str, tensor: StoredTensor, tensors: Mapping[str, Tensor]) -> Tensor:
        tensor.check_type(FLOAT_TYPES)
        tensor.check_shape(self._base(name, tensors).shape)
        return tensor

    def _base(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        if name not in tensors:
            raise UserError(f"--adapter {self.path}: is for a module that the model has not: there is no tensor {name}")
        return tensors[name]

    def _factor(self, stored: Mapping[str, StoredTensor], name: str) -> StoredTensor:
        if name not in stored:
            raise UserError(f"--adapter {self.path}: {WEIGHTS} has no tensor {PREFIX}{name}")
        stored[name].check_type(FLOAT_TYPES)
        return stored[name]

    def _merge(self, module: str, base: Tensor, a: StoredTensor, b: StoredTensor, transposed: bool) -> _Merged:
        rank = self._of("r", "rank_pattern", module, default=8)
        alpha = self._of("lora_alpha", "alpha_pattern", module, default=8)
        if type(rank) is not int or rank < 1:
            raise self._error("r", rank, "expected a whole number from 1")
        if type(alpha) not in (int, float):
            raise self._error("lora_alpha", alpha, "expected a number")
        if len(base.shape) != 2:
            raise UserError(f"--adapter {self.path}: {module} has a weight of shape {list(base.shape)}, and no matrix")
        rows, columns = base.shape[::-1] if transposed else base.shape
        a.check_shape((rank, columns))
        b.check_shape((rows, rank))
        scaling = alpha / math.sqrt(rank) if self._config.get("use_rslora") else alpha / rank
        return _Merged(base, a, b, scaling, transposed)

    def _of(self, name: str, pattern_name: str, module: str, default: int) -> Any:
        """A number of a module: the first pattern that the end of its name matches has it, or else it is for all."""
        patterns = self._config.get(pattern_name) or {}
        if not isinstance(patterns, dict):
            raise self._error(pattern_name, patterns, "expected a JSON object")
        for pattern, value in patterns.items():
            try:
                if re.fullmatch(rf"(.*\.)?({pattern})", module):
                    return value
            except re.error as error:
                raise self._error(pattern_name, pattern, f"is no regular expression: {error}") from error
        return self._config.get(name, default)

    @cached_property
    def _config(self) -> dict[str, Any]:
        return read_json(self.path / ADAPTER)

    def _error(self, name: str, value: object, what: str) -> UserError:
        return UserError(f"--adapter {self.path}: {name} in {ADAPTER} is {value!r}; {what}")


def base_model(path: Path) -> str:
    """What an adapter says that it is for, for a message."""
    name = read_json(path / ADAPTER).get("base_model_name_or_path")
    return name if isinstance(name, str) and name else "its base model"
