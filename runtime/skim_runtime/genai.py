"""The same model in onnxruntime-genai."""

from __future__ import annotations

import ctypes
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skim_runtime.errors import UserError
from skim_runtime.interruptible import ends_at_once
from skim_runtime.load_library import FALLBACK, load, one_line
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.open_session import Kernel, check_for_cpu, check_options
from skim_runtime.providers import Provider, cpu_instead, cuda_obstacle, provider_of
from skim_runtime.step import as_batch, finite

__all__ = ["GenaiSession"]


class GenaiSession:
    """A decoder that skim-export wrote, run by onnxruntime-genai; takes the place of a `Session` in `generate`.

    It computes the cache anew where a `Session` does, in one run.

    Arguments, `directory`, `kernel`, `library` and `weight_bytes` are those of `Session`.

    Raises:
        UserError: a file is missing or damaged, or onnxruntime-genai refuses the model.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        threads: int | None = None,
        kernel: Kernel = "auto",
        ep: Provider | None = None,
        trust_library: bool = False,
    ) -> None:
        import onnxruntime_genai as og

        check_options(threads, kernel, ep)
        self.directory = ModelDirectory.open(directory)
        self.weight_bytes = self.directory.graph.weight_bytes
        provider = provider_of(self.directory, ep)
        self.library, self.kernel = _library(self.directory, kernel, trust_library)
        if provider == "cuda":
            obstacle = cuda_obstacle("onnxruntime-genai", og.is_cuda_available(), self.library)
            if obstacle is not None:
                cpu_instead(self.directory, ep, obstacle)
                provider = "cpu"
            elif self.library is not None:
                self.kernel = "cuda"
        if provider == "cpu":
            check_for_cpu(self.directory)
        options = {} if threads is None else {"intra_op_num_threads": threads}
        try:
            with _view(self.directory, self.library) as path:
                config = og.Config(str(path))
                if provider != self.directory.provider:
                    config.clear_providers()
                config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
                with ends_at_once():
                    self._model = og.Model(config)
        except Exception as error:  # onnxruntime-genai raises RuntimeError and its own
            raise UserError(f"{self.directory.path}: refused by onnxruntime-genai: {one_line(error)}") from error
        self._lock = threading.Lock()
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
        with self._lock:
            self._generator, self._past_ids = og.Generator(self._model, parameters), np.empty((1, 0), np.int32)

    def step(self, input_ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Append tokens `[S]` and return the logits of the last one, float32 `[1, V]`.

        Raises:
            UserError: as for `Session.step`.
        """
        with self._lock:
            past = self._past_ids.shape[1]
            ids = as_batch(input_ids, past, self.context_length, self.directory.vocabulary).astype(np.int32)
            every, switch = np.concatenate((self._past_ids, ids), axis=1), self.directory.graph.rotary_switch
            switched = switch is not None and past <= switch < every.shape[1]
            try:
                with ends_at_once():
                    if switched:
                        self._generator.rewind_to(0)
                    self._generator.append_tokens(every if switched else ids)
            except Exception as error:  # RuntimeError and its own
                refusal = f"{self.directory.path}: refused by onnxruntime-genai: {one_line(error)}"
                raise UserError(refusal) from error
            self._past_ids = every
            return finite(self._generator.get_logits()[0])


def _library(directory: ModelDirectory, kernel: Kernel, trust_library: bool) -> tuple[Path | None, str]:
    """The operator library to use, if any, and the kernel that then runs packed weights."""
    if not directory.graph.has_packed_weights:
        return None, "none"
    if kernel == "function":
        return None, FALLBACK
    return load(directory, lambda path: ctypes.CDLL(str(path)), trust_library=trust_library)


@contextmanager
def _view(directory: ModelDirectory, library: Path | None) -> Iterator[Path]:
    """The model's directory as if it came with `library`.

    onnxruntime-genai takes only a library that lies in the model's directory, and once `genai_config.json` names one,
    no overlay can take that back. So another choice gets a temporary directory of links.
    """
    own = directory.custom_ops_library
    if library == (None if own is None else directory.path / own):
        yield directory.path
        return
    config = json.loads((directory.path / "genai_config.json").read_text("utf-8"))
    options = config["model"]["decoder"].setdefault("session_options", {})
    options.pop("custom_ops_library", None)
    with tempfile.TemporaryDirectory() as name:
        view = Path(name)
        for file in directory.path.iterdir():
            if file.name not in ("genai_config.json", own, None if library is None else library.name):
                (view / file.name).symlink_to(file.resolve())
        if library is not None:
            shutil.copyfile(library, view / library.name)  # a link that leads out of the directory is refused
            options["custom_ops_library"] = library.name
        (view / "genai_config.json").write_text(json.dumps(config), "utf-8")
        yield view
