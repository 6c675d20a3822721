"""The full-precision model in torch, to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from .checkpoint import Checkpoint
from .recipes import resolve
from .skeleton import skeleton

__all__ = ["TorchReference"]


class TorchReference:
    """A transformers model as `evaluate` takes it."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def load(cls, model: str | Path, *, progress: Progress | None = None) -> TorchReference:
        """A checkpoint in float32.

        Args:
            model: an alias, a Hugging Face id, a Hugging Face directory or a GGUF file.
            progress: told about downloads.

        Raises:
            UserError: the model is not found, or cannot be loaded.
        """
        path = resolve(str(model), progress=progress)
        return cls.of(Checkpoint(path))

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> TorchReference:
        """A checkpoint as an export sees it: without quantization, its adapter merged.

        Raises:
            UserError: transformers cannot load it.
        """
        if checkpoint.adapter is None and checkpoint.is_plain:
            return cls(_loaded(checkpoint.source))
        tensors = {name: checkpoint.tensor(name) for name in checkpoint.names}
        network = type(skeleton(checkpoint))
        return cls(network.from_pretrained(None, config=checkpoint.config, state_dict=tensors).eval())

    def logits(self, input_ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Logits, float32 `[S, V]`, of the tokens `[S]`."""
        import torch

        ids = torch.from_numpy(np.asarray(input_ids, np.int64))[None]
        with torch.inference_mode():
            logits: npt.NDArray[np.float32] = self._model(ids, use_cache=False).logits[0].numpy()
        return logits


def _loaded(path: Path) -> Any:
    """The network that transformers makes of a directory."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: transformers cannot load it: {' '.join(str(error).split())}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
