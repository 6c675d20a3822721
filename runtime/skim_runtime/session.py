"""A model in ONNX Runtime: load it, feed tokens, get logits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skim_runtime.bound_step import (
    EAGER,
    ELEMENT_DTYPES,
    ELEMENT_TYPES,
    BoundCache,
    FixedStep,
    ort_value,
    run_options,
)
from skim_runtime.cache import KeyValueCache
from skim_runtime.capturing import running
from skim_runtime.errors import UserError
from skim_runtime.interruptible import interruptible
from skim_runtime.load_library import one_line
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.open_session import Kernel, check_options, open_session
from skim_runtime.providers import Provider
from skim_runtime.step import as_batch, finite

__all__ = ["Session"]

LONG_BYTES = 1 << 30  # weights read, times tokens: with less, a run is over within a second
_INPUTS = {"input_ids", "attention_mask", "position_ids"}


class Session:
    """A decoder that skim-export wrote, with its key/value cache; batch size 1.

    Several threads may use one session: calls that touch its cache wait for each other.

    A model that was exported for CUDA runs there, its cache stays there, and single tokens are replayed as a CUDA
    graph. If that is impossible, a warning says why, and it runs on the CPU.

    Attributes:
        directory: the exported directory.
        device: "cpu" or "cuda".
        kernel: what multiplies packed weights: the kernels of our library and their arithmetic, such as "avx2, integer
            arithmetic", or "cuda"; "function fallback" (standard operators in a stock onnxruntime, slow); or "none"
            (the graph has no packed weights).
        weight_bytes: bytes of weights, packed ones and those of layers beside them, read for each generated token.
        vocabulary: number of logits of a token, V.
        library: our operator library that is used, if any is.

    Args:
        directory: what skim-export wrote.
        threads: threads of the session; by default as many as onnxruntime finds cores.
        kernel: "auto" registers our operator library, "function" leaves it out.
        ep: the execution provider, "cpu" or "cuda": refused where that is impossible. By default the model's own.
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
        ep: Provider | None = None,
        trust_library: bool = False,
    ) -> None:
        check_options(threads, kernel, ep)
        self.directory = ModelDirectory.open(directory)
        graph = self.directory.graph
        if not graph.shared_cache:
            raise UserError(
                f"{self.directory.model_file}: its key/value cache must come from GroupQueryAttention nodes"
            )
        self.weight_bytes = graph.weight_bytes
        opened = open_session(self.directory, threads, kernel, ep, trust_library)
        self._session, self._graphs = opened.session, opened.graphs
        self.kernel, self.device, self.library = opened.kernel, opened.device, opened.library

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
        self._logits_type = ELEMENT_TYPES[outputs["logits"].type]
        self._cache_type = ELEMENT_TYPES[inputs[past[0]].type]
        kv_heads = [inputs[name].shape[1] for name in past]
        self._cache = KeyValueCache(kv_heads, head_size, ELEMENT_DTYPES[self._cache_type])
        self._lock = threading.Lock()  # of the cache and what is bound to it
        self._past_ids: list[npt.NDArray[np.int64]] = []  # of a cache in a device's memory
        self._bound: BoundCache | None = None
        self._fixed: FixedStep | None = None
        self._graph = EAGER  # the number of the last CUDA graph

    def _check_value(self, value: Any, rank: int, size: int) -> None:
        """Of logits `[B, S, V]`, or of keys or values `[B, heads, S, head size]`; `size` is that of the last axis."""
        shape = value.shape
        known = len(shape) == rank and (rank == 3 or isinstance(shape[1], int))
        if value.type not in ELEMENT_TYPES or not known or (isinstance(shape[-1], int) and shape[-1] != size):
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
            self._past_ids = []
            if self._bound is not None and self.device != "cpu" and capacity <= self._cache.capacity:
                self._cache.length = 0  # what was captured of these buffers can be replayed
                return
            self._cache.clear(capacity)
            self._bound = self._fixed = None

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
            self._grow(ids.shape[1])
        return _float32(self._append(ids))

    def _grow(self, tokens: int) -> None:
        """Make room for `tokens` more. A cache in a device's memory is made anew: what it held is computed again."""
        self._cache.reserve(tokens)
        self._bound = self._fixed = None
        if self.device != "cpu":
            past, self._past_ids, self._cache.length = self._past_ids, [], 0
            for ids in past:
                self._append(ids)

    def _append(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The logits `[S, V]` of tokens `[1, S]` that the cache has room for, as the graph gives them."""
        if self._bound is None:
            buffers = self._cache.buffers
            self._bound = BoundCache(self._session, self._past, buffers, self._cache_type, self.device)
        with self._refusals():
            one = self._graphs and ids.shape[1] == 1
            logits = self._replayed(ids, self._bound) if one else self._eager(ids, self._bound)
        self._cache.length += ids.shape[1]
        if self.device != "cpu":
            self._past_ids.append(ids)
        return logits

    def _eager(self, ids: npt.NDArray[np.int64], bound: BoundCache) -> npt.NDArray[Any]:
        """The logits `[S, V]` of any number of tokens."""
        for name, array in self._feeds(ids, self._cache.length).items():
            bound.binding.bind_cpu_input(name, array)
        logits = np.empty((*ids.shape, self.vocabulary), ELEMENT_DTYPES[self._logits_type])
        bound.binding.bind_ortvalue_output("logits", ort_value(logits, self._logits_type, "cpu"))
        self._run(ids.shape[1], lambda options: self._session.run_with_iobinding(bound.binding, options))
        found: npt.NDArray[Any] = logits[0]
        return found

    def _replayed(self, ids: npt.NDArray[np.int64], bound: BoundCache) -> npt.NDArray[Any]:
        """The logits `[1, V]` of one token."""
        if self._fixed is None:
            self._graph += 1
            self._fixed = FixedStep(
                self._session,
                bound,
                self._cache.capacity,
                self.vocabulary,
                self._logits_type,
                has_position_ids=self._has_position_ids,
                device=self.device,
                graph=self._graph,
            )
        return self._fixed.run(int(ids[0, 0]), self._cache.length)

    def logits(self, input_ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Logits, float32 `[S, V]`, of the tokens `[S]` alone; the key/value cache is neither read nor changed.

        Raises:
            UserError: as for `step`.
        """
        ids = as_batch(input_ids, 0, self.context_length, self.vocabulary)
        binding, feeds = self._session.io_binding(), self._feeds(ids, 0)
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, buffer in zip(self._past, self._cache.buffers, strict=True):
            feeds[name] = np.ascontiguousarray(buffer[:, :, :0])  # kept alive here
            binding.bind_ortvalue_input(name, ort_value(feeds[name], self._cache_type, "cpu"))
        binding.bind_output("logits", "cpu")
        with self._refusals():
            self._run(ids.shape[1], lambda options: self._session.run_with_iobinding(binding, options))
        (logits,) = binding.copy_outputs_to_cpu()
        return finite(_float32(logits[0]))

    def _run(self, tokens: int, call: Callable[[Any], Any]) -> Any:
        """What a call returns that is given run options; Ctrl-C ends it if it takes long, between two nodes."""
        options = run_options(EAGER) if self._graphs else None
        with running() if self._graphs else contextlib.nullcontext():
            if tokens * self.weight_bytes < LONG_BYTES:
                return call(options)
            ending = options or run_options(EAGER)
            return interruptible(lambda: call(ending), lambda: setattr(ending, "terminate", True))

    def _feeds(self, ids: npt.NDArray[np.int64], past: int) -> dict[str, npt.NDArray[Any]]:
        total = past + ids.shape[1]
        feeds: dict[str, npt.NDArray[Any]] = {"input_ids": ids, "attention_mask": np.ones((1, total), np.int64)}
        if self._has_position_ids:
            feeds["position_ids"] = np.arange(past, total, dtype=np.int64)[None]
        return feeds


def _float32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    converted: npt.NDArray[np.float32] = array.astype(np.float32, copy=False)
    return converted
