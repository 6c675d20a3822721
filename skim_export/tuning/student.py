"""The quantized model while it is tuned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from skim_export.calibration.streaming import StreamedModel
from skim_export.checkpoint import Linear, Model
from skim_export.packed.checkpoint import PackedCheckpoint
from skim_export.work.files import fsync
from skim_runtime.errors import UserError

from .adam import Adam
from .linear import TrainedLinear

__all__ = ["Student"]


class Student:
    """A packed checkpoint whose levels and norms are parameters.

    Attributes:
        streamed: the model around them, one block in memory at a time.
        linears: the linear layers of all blocks, by name.
        norm: the last norm.
        head: the head, which stays as it is.

    Args:
        model: the full-precision model.
        packed: its quantized linear layers.
        tokens: the text.
        scratch: an empty directory, for what is too large for memory.
    """

    def __init__(self, model: Model, packed: PackedCheckpoint, tokens: npt.NDArray[np.int64], scratch: Path) -> None:
        checkpoint, architecture = model.checkpoint, model.architecture
        self._checkpoint, self._architecture = checkpoint, architecture
        names = [linear.name for linear in architecture.linears]
        self.linears = {name: TrainedLinear(packed.read(name), scratch / f"{name}.npy") for name in names}
        norms = [name for name in checkpoint.names if name.endswith("norm.weight")]
        self._run = _fingerprint(packed, tokens)
        self._norms = {name: checkpoint.tensor(name).clone() for name in norms}
        self._optimizers = {name: Adam(norm.shape) for name, norm in self._norms.items()}
        self.streamed = StreamedModel(model)
        norm, self.head = self.streamed.load_head()
        self.norm = _assigned(norm, {"weight": self._norms[f"{architecture.norm}.weight"]})

    def load_block(self, index: int) -> nn.Module:
        """A block with its present weights."""
        module = self._architecture.block_modules[index]
        block = self.streamed.block(index)
        tensors = self._norms | self._weights(self._architecture.packed_blocks[index])
        names = {part: f"{module}.{part}" for part in block.state_dict()}
        return _assigned(
            block,
            {part: tensors[n] if n in tensors else self._checkpoint.tensor(n) for part, n in names.items()},
        )

    def _weights(self, linears: Iterable[Linear]) -> dict[str, torch.Tensor]:
        """The present weights of the modules that linear layers are made of."""
        parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for linear in linears:
            weight = self.linears[linear.name].weight()
            for member, rows in linear.places():
                parts.setdefault(f"{member.module}.weight", []).append((member.start, weight[rows]))
        ordered = {name: [part for _, part in sorted(found, key=itemgetter(0))] for name, found in parts.items()}
        return {name: found[0] if len(found) == 1 else torch.cat(found) for name, found in ordered.items()}

    def norms(self, module: nn.Module, name: str) -> dict[str, torch.Tensor]:
        """The norms in a loaded module of this name, ready to be differentiated in."""
        parameters = {f"{name}.{part}": parameter for part, parameter in module.named_parameters()}
        norms: dict[str, torch.Tensor] = {key: norm for key, norm in parameters.items() if key in self._norms}
        for norm in norms.values():
            norm.requires_grad_()
        return norms

    def step_norms(self, names: Iterable[str], gradients: list[torch.Tensor], rate: float) -> None:
        """Move norms against their gradients by about `rate` times their mean size."""
        for name, gradient in zip(names, gradients, strict=True):
            norm = self._norms[name]
            norm -= rate * norm.abs().mean() * self._optimizers[name].direction(gradient)

    def save(self, path: Path, step: int, before: float, after: float) -> None:
        """Keep the state after `step` steps, with the divergences known then; it replaces the file at once."""
        record = json.dumps({"step": step, "before": before, "after": after, "run": self._run})
        partial = path.with_suffix(".partial")
        save_file(self._tensors(), partial, {"record": record})
        fsync(partial)
        partial.replace(path)

    def restore(self, path: Path) -> tuple[int, float, float]:
        """Go back to what `save` kept; its step and divergences.

        Raises:
            UserError: that was another model, text or quantization.
        """
        with safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()["record"])
            if record["run"] != self._run:
                raise UserError(f"{path} is the state of another tuning: remove it, or repeat the export that left it")
            for name, tensor in self._tensors().items():
                tensor.copy_(file.get_tensor(name))
        for optimizer in self._all_optimizers().values():
            optimizer.steps = record["step"]
        return record["step"], record["before"], record["after"]

    def write(self, packed: PackedCheckpoint) -> None:
        """Replace the linears of the packed checkpoint, and add the norms to it."""
        for name, linear in self.linears.items():
            packed.write(name, linear.pack(packed.read(name)), {**packed.report(name), "tuned": True})
        packed.write_parameters(self._norms)

    def _all_optimizers(self) -> dict[str, Adam]:
        return self._optimizers | {name: linear.optimizer for name, linear in self.linears.items()}

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = dict(self._norms) | {f"{name}.levels": linear.levels for name, linear in self.linears.items()}
        for name, optimizer in self._all_optimizers().items():
            tensors |= {f"{name}.mean": optimizer.mean, f"{name}.square": optimizer.square}
        return tensors


def _fingerprint(packed: PackedCheckpoint, tokens: npt.NDArray[np.int64]) -> str:
    """Tells one run from another: what is tuned, and on what text."""
    digest = hashlib.sha256(tokens.tobytes())
    for name in packed.names():
        digest.update(packed.digest(name).encode())
    return digest.hexdigest()


def _assigned(module: nn.Module, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """The module with these tensors as its parameters; the memory is shared."""
    module.load_state_dict(tensors, assign=True)
    return module.requires_grad_(False)
