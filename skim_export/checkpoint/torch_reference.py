"""The full-precision model in torch, to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from .checkpoint import Checkpoint

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
            UserError: the model is not found, or transformers cannot load it.
        """
        from transformers.utils import logging

        from skim_export.checkpoint.recipes import resolve

        path = resolve(str(model), progress=progress)
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            return cls(_load(path).eval())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: transformers cannot load it: {' '.join(str(error).split())}") from error
        finally:
            if bars:
                logging.enable_progress_bar()

    def logits(self, input_ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Logits, float32 `[S, V]`, of the tokens `[S]`."""
        import torch

        ids = torch.from_numpy(np.asarray(input_ids, np.int64))[None]
        with torch.inference_mode():
            logits: npt.NDArray[np.float32] = self._model(ids, use_cache=False).logits[0].numpy()
        return logits


def _load(path: Path) -> Any:
    import torch
    import transformers

    checkpoint = Checkpoint(path)
    if checkpoint.path == path:
        return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    # transformers reads GGUF files, too, but misunderstands some; these are the weights that are exported.
    weights = {name: checkpoint.tensor(name) for name in checkpoint.names}
    network = getattr(transformers, checkpoint.architecture_name)
    return network.from_pretrained(None, config=checkpoint.config, state_dict=weights, dtype=torch.float32)
