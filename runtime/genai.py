"""The same model in onnxruntime-genai."""

from __future__ import annotations

import ctypes
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from skim_runtime.errors import UserError
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.operators import FALLBACK, load, one_line
from skim_runtime.session import Kernel, check_options

__all__ = ["GenaiSession"]


class GenaiSession:
    """A decoder that skim-export wrote, run by onnxruntime-genai; takes the place of a `Session` in `generate`.

    Arguments, `directory`, `kernel` and `weight_bytes` are those of `Session`.

    Raises:
        UserError: a file is missing or damaged, or onnxruntime-genai refuses the model.
    """

    def __init__(self, directory: str | Path, *, threads: int | None = None, kernel: Kernel = "auto") -> None:
        import onnxruntime_genai as og

        check_options(threads, kernel)
        self.directory = ModelDirectory.open(directory)
        self.weight_bytes = self.directory.graph.weight_bytes
        library, self.kernel = _library(self.directory, kernel)
        options: dict[str, Any] = {"custom_ops_library": library} if library else {}
        if threads is not None:
            options["intra_op_num_threads"] = threads
        try:
            with _without_library(self.directory) if library is None else nullcontext(self.directory.path) as path:
                config = og.Config(str(path))
                config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
                self._model = og.Model(config)
        except Exception as error:  # onnxruntime-genai raises RuntimeError and its own
            raise UserError(f"{self.directory.path}: refused by onnxruntime-genai: {one_line(error)}") from error
        self.reset()

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""
        return self.directory.context_length

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        return self.directory.eos_token_ids

    def reset(self, capacity: int = 0) -> None:
        """Forget all tokens; onnxruntime-genai fixes the room for tokens now: `capacity`, or else the whole context."""
        import onnxruntime_genai as og

        parameters = og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=min(capacity, self.context_length) or self.context_length)
        self._generator = og.Generator(self._model, parameters)

    def step(self, input_ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Append tokens `[S]` and return the logits of the last one, float32 `[1, V]`."""
        self._generator.append_tokens(np.asarray(input_ids, np.int32).reshape(1, -1))
        logits: npt.NDArray[np.float32] = self._generator.get_logits()[0]
        return logits


def _library(directory: ModelDirectory, kernel: Kernel) -> tuple[str | None, str]:
    """What to set `custom_ops_library` to, and the kernel that then runs packed weights.

    onnxruntime-genai takes a file inside the model's directory, or the name of a library that is already loaded.
    """
    if not directory.graph.has_packed_weights:
        return None, "none"
    if kernel == "function":
        return None, FALLBACK
    path, name = load(directory, lambda path: ctypes.CDLL(str(path)))
    return None if path is None else path.name, name


@contextmanager
def _without_library(directory: ModelDirectory) -> Iterator[Path]:
    """The model's directory as if `genai_config.json` named no operator library, which an overlay cannot undo."""
    if directory.custom_ops_library is None:
        yield directory.path
        return
    config = json.loads((directory.path / "genai_config.json").read_text("utf-8"))
    del config["model"]["decoder"]["session_options"]["custom_ops_library"]
    with tempfile.TemporaryDirectory() as name:
        view = Path(name)
        (view / "genai_config.json").write_text(json.dumps(config), "utf-8")
        for file in directory.path.iterdir():
            if file.name != "genai_config.json":
                (view / file.name).symlink_to(file.resolve())
        yield view
