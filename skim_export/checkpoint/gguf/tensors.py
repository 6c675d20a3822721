"""The tensors of a GGUF model under the names, and in the order of rows, that transformers has for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from skim_runtime.errors import UserError, foreign_errors

from .config import Config, gguf_architecture
from .header import BlockTensor, GgufHeader
from .rotary import FACTORS

if TYPE_CHECKING:
    import torch

__all__ = ["GgufTensor", "gguf_tensors"]

ROTATED = (".q_proj.weight", ".q_proj.bias", ".k_proj.weight", ".k_proj.bias")
NORM = "norm.weight"


@dataclass(frozen=True)
class GgufTensor:
    """A tensor as a module of transformers has it.

    Attributes:
        stored: as the file has it.
        shape: of the parameter; the same but for dimensions of size 1.
        head_size: 0, or else rows are pairs of rotary dimensions in heads of this size, and become halves.
        offset: to be subtracted.
    """

    stored: BlockTensor
    shape: tuple[int, ...]
    head_size: int
    offset: float

    @property
    def file(self) -> Path:
        """Where it lies."""
        return self.stored.file

    def read(self, rows: slice = slice(None)) -> torch.Tensor:
        """The values, float32 `shape`, or those of some of its rows."""
        import torch

        values = self.stored.read(self._order()[rows] if self.head_size else rows)
        return torch.from_numpy(values).reshape(-1, *self.shape[1:]).sub_(self.offset)

    def _order(self) -> npt.NDArray[np.int64]:
        """Where the file has every row, int64 `[rows]`."""
        pairs = np.arange(self.shape[0]).reshape(-1, self.head_size // 2, 2)
        return pairs.swapaxes(1, 2).reshape(-1)


def gguf_tensors(header: GgufHeader, config: Config) -> dict[str, GgufTensor]:
    """The tensors of a model by the names that transformers has for them.

    Raises:
        UserError: one is missing, of another shape, or belongs to nothing.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture, name = gguf_architecture(header), header.metadata["general.architecture"]
    known = next(known for known, its_name in MODEL_ARCH_NAMES.items() if its_name == name)
    names = get_tensor_name_map(known, config["num_hidden_layers"])
    tensors, unused = {}, set(header.tensors) - set(FACTORS)
    for parameter, shape in _parameters(header, config).items():
        stored_name = str(names.get_name(parameter, try_suffixes=(".weight", ".bias")))
        stored = header.tensors.get(stored_name)
        if stored is None:
            raise UserError(f"{header.files[0]} has no tensor {stored_name} (in transformers {parameter})")
        if [size for size in stored.shape if size > 1] != [size for size in shape if size > 1]:
            raise UserError(
                f"{stored.file}: the tensor {stored_name} has shape {list(stored.shape)}; its metadata ask for "
                f"{list(shape)}"
            )
        head_size = config["head_dim"] if architecture.interleaved and parameter.endswith(ROTATED) else 0
        tensors[parameter] = GgufTensor(
            stored, shape, head_size, architecture.norm_offset if parameter.endswith(NORM) else 0.0
        )
        unused.discard(stored_name)
    if unused:
        raise UserError(f"{header.files[0]} has the tensor {min(unused)}, which is no part of its architecture")
    return tensors


def _parameters(header: GgufHeader, config: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of the model of transformers; a tied head is not among them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with foreign_errors(f"{header.files[0]}: transformers makes no model of its metadata"), torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
