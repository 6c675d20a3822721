"""A model in ONNX Runtime: load it, feed tokens, get logits."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from skim_runtime.cache import KeyValueCache
from skim_runtime.errors import UserError
from skim_runtime.interruptible import interruptible
from skim_runtime.load_library import FALLBACK, check_onnxruntime, load, one_line
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.providers import PROVIDERS, cuda_obstacle, warn_of_cpu
from skim_runtime.step import as_batch, finite

__all__ = ["Kernel", "Session"]

Kernel = Literal["auto", "function"]

_DTYPES: dict[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
LONG_BYTES = 1 << 30  # weights read, times tokens: with less, a run is over within a second
_INPUTS = {"input_ids", "attention_mask", "position_ids"}


class Session:
    """A decoder that skim-export wrote, with its key/value cache; batch size 1.

    Several threads may use one session: calls that touch its cache wait for each other.

    A model that was exported for CUDA runs there, and its cache stays there. If that is impossible, a warning says why,
    and it runs on the CPU.

    Attributes:
        directory: the exported directory.
        device: "cpu" or "cuda".
        kernel: what multiplies packed weights: the kernels of our library and their arithmetic, such as "avx2, integer
            arithmetic", or "cuda"; "function fallback" (standard operators in a stock onnxruntime, slow); or "none"
            (the graph has no packed weights).
        weight_bytes: bytes of packed weights read for each generated token.
        vocabulary: number of logits of a token, V.

    Args:
        directory: what skim-export wrote.
        threads: threads of the session; by default as many as onnxruntime finds cores.
        kernel: "auto" registers our operator library, "function" leaves it out.
        trust_library: whether to run the operator library that lies in the directory, if there is one, in place of the
            installed one: code from whoever made the directory.

    Raises:
        UserError: a file is missing or damaged, or onnxruntime refuses the model.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        threads: int | None = None,
        kernel: Kernel = "auto",
        trust_library: bool = False,
    ) -> None:
        check_options(threads, kernel)
        self.directory = ModelDirectory.open(directory)
        graph = self.directory.graph
        if not graph.shared_cache:
            raise UserError(
                f"{self.directory.model_file}: its key/value cache must come from GroupQueryAttention nodes"
            )
        self.weight_bytes = graph.weight_bytes
        self._session, self.kernel = _open(self.directory, threads, kernel, trust_library)
        self.device = "cuda" if PROVIDERS["cuda"] in self._session.get_providers() else "cpu"

        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = {value.name: value for value in self._session.get_outputs()}
        past = [name for name in inputs if name.startswith("past_key_values.")]
        unknown = sorted(inputs.keys() - set(past) - _INPUTS)
        if unknown or "logits" not in outputs or not past:
            what = f"has an unknown input {unknown[0]!r}" if unknown else "has no logits or no past_key_values"
            raise UserError(f"{self.directory.model_file}: {what}; expected the graph of a text decoder")
        self._has_position_ids = "position_ids" in inputs
        self._past = {name: name.replace("past_key_values.", "present.") for name in past}
        self.vocabulary, head_size = self.directory.vocabulary, self.directory.head_size
        self._check_value(outputs["logits"], 3, self.vocabulary)
        for name in past:
            self._check_value(inputs[name], 4, head_size)
        self._logits_dtype = _DTYPES[outputs["logits"].type]
        kv_heads = [inputs[name].shape[1] for name in past]
        self._cache = KeyValueCache(kv_heads, head_size, _DTYPES[inputs[past[0]].type])
        self._lock = threading.Lock()  # of the cache and its binding
        self._values: list[Any] = []  # the cache in the device's memory
        self._binding: Any = None

    def _check_value(self, value: Any, rank: int, size: int) -> None:
        """Of logits `[B, S, V]`, or of keys or values `[B, heads, S, head size]`; `size` is that of the last axis."""
        shape = value.shape
        known = len(shape) == rank and (rank == 3 or isinstance(shape[1], int))
        if value.type not in _DTYPES or not known or (isinstance(shape[-1], int) and shape[-1] != size):
            raise UserError(
                f"{self.directory.model_file}: {value.name} is {value.type} {shape}; genai_config.json lets one expect "
                f"{rank} axes of which the last is {size}"
            )

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """What onnxruntime refuses to run, although it has loaded it, is no fault of the program."""
        try:
            yield
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise UserError(f"{self.directory.model_file}: refused by onnxruntime: {one_line(error)}") from error

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""
        return self.directory.context_length

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        return self.directory.eos_token_ids

    @property
    def length(self) -> int:
        """Tokens in the key/value cache."""
        return self._cache.length

    def reset(self, capacity: int = 0) -> None:
        """Forget all tokens; room for `capacity` tokens spares the cache from growing later."""
        with self._lock:
            self._cache.clear(capacity)
            self._values = []
            self._binding = None

    def step(self, input_ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Append tokens `[S]` to those before and return their logits, float32 `[S, V]`.

        Raises:
            UserError: what is given are no tokens of the model, or more than fit its context; or logits are not finite.
        """
        with self._lock:
            return finite(self._step(input_ids))

    def _step(self, input_ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        ids = as_batch(input_ids, self._cache.length, self.context_length, self.vocabulary)
        if self._cache.length + ids.shape[1] > self._cache.capacity:
            self._fetch_cache()
            self._cache.reserve(ids.shape[1])
            self._binding = None
        if self._binding is None:
            self._bind_cache()
        binding = self._binding
        for name, array in self._feeds(ids, self._cache.length).items():
            binding.bind_cpu_input(name, array)
        logits = np.empty((*ids.shape, self.vocabulary), self._logits_dtype)
        binding.bind_ortvalue_output("logits", _ort_value(logits, "cpu"))
        with self._refusals():
            self._run(ids.shape[1], lambda options: self._session.run_with_iobinding(binding, options))
        self._cache.length += ids.shape[1]
        return _float32(logits[0])

    def logits(self, input_ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Logits, float32 `[S, V]`, of the tokens `[S]` alone; the key/value cache is neither read nor changed.

        Raises:
            UserError: as for `step`.
        """
        ids = as_batch(input_ids, 0, self.context_length, self.vocabulary)
        feeds = self._feeds(ids, 0)
        for name, buffer in zip(self._past, self._cache.buffers, strict=True):
            feeds[name] = buffer[:, :, :0]
        with self._refusals():
            (logits,) = self._run(ids.shape[1], lambda options: self._session.run(["logits"], feeds, options))
        return finite(_float32(logits[0]))

    def _run(self, tokens: int, call: Callable[[Any], Any]) -> Any:
        """What a call returns that is given run options; Ctrl-C ends it if it takes long, between two nodes."""
        if tokens * self.weight_bytes < LONG_BYTES:
            return call(None)
        import onnxruntime as ort

        options = ort.RunOptions()
        return interruptible(lambda: call(options), lambda: setattr(options, "terminate", True))

    def _feeds(self, ids: npt.NDArray[np.int64], past: int) -> dict[str, npt.NDArray[Any]]:
        total = past + ids.shape[1]
        feeds: dict[str, npt.NDArray[Any]] = {"input_ids": ids, "attention_mask": np.ones((1, total), np.int64)}
        if self._has_position_ids:
            feeds["position_ids"] = np.arange(past, total, dtype=np.int64)[None]
        return feeds

    def _fetch_cache(self) -> None:
        """Bring home what the device has written."""
        if self.device != "cpu":
            for buffer, value in zip(self._cache.buffers, self._values, strict=False):
                buffer[...] = value.numpy()

    def _bind_cache(self) -> None:
        self._binding = self._session.io_binding()
        self._values = [_ort_value(buffer, self.device) for buffer in self._cache.buffers]
        for (past, present), value in zip(self._past.items(), self._values, strict=True):
            self._binding.bind_ortvalue_input(past, value)
            self._binding.bind_ortvalue_output(present, value)


def check_options(threads: int | None, kernel: str) -> None:
    """Refuse options of a session that make no sense.

    Raises:
        UserError: naming the option.
    """
    if threads is not None and threads < 1:
        raise UserError(f"threads must be at least 1, got {threads}")
    if kernel not in ("auto", "function"):
        raise UserError(f"kernel must be auto or function, got {kernel!r}")


def _open(directory: ModelDirectory, threads: int | None, kernel: Kernel, trust_library: bool) -> tuple[Any, str]:
    """An onnxruntime session and the kernel that it runs packed weights with."""
    import onnxruntime as ort

    check_onnxruntime(ort.__version__)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    library, name = None, "none"
    if directory.graph.has_packed_weights:
        if kernel == "function":
            name = FALLBACK
        else:
            library, name = load(
                directory,
                lambda path: options.register_custom_ops_library(str(path)),
                trust_library=trust_library,
            )
    if directory.provider == "cuda":
        try:
            session = _cuda_session(directory, options, library)
        except UserError as error:
            warn_of_cpu(str(error))
        else:
            return session, name if library is None else "cuda"
    try:
        opened = interruptible(
            lambda: ort.InferenceSession(directory.model_file, options, providers=[PROVIDERS["cpu"]])
        )
        return opened, name
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise UserError(f"{directory.model_file}: refused by onnxruntime: {one_line(error)}") from error


def _cuda_session(directory: ModelDirectory, options: Any, library: Path | None) -> Any:
    """An onnxruntime session on the GPU.

    Raises:
        UserError: why there is none.
    """
    import onnxruntime as ort

    obstacle = cuda_obstacle("onnxruntime", PROVIDERS["cuda"] in ort.get_available_providers(), library)
    if obstacle is not None:
        raise UserError(obstacle)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find; the session will say it again
        ort.preload_dlls()
    providers = [PROVIDERS["cuda"], PROVIDERS["cpu"]]  # what belongs to shapes is computed on the CPU
    try:
        session = ort.InferenceSession(directory.model_file, options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise UserError(one_line(error)) from error
    if session.get_providers() != providers:
        raise UserError("onnxruntime could not load its CUDAExecutionProvider, see its messages")
    return session


def _float32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    converted: npt.NDArray[np.float32] = array.astype(np.float32, copy=False)
    return converted


def _ort_value(array: npt.NDArray[Any], device: str) -> Any:
    """An OrtValue over the memory of `array`; on another device than the CPU over a copy."""
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_numpy(array, device, 0)
