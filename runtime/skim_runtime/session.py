"""A model in ONNX Runtime: load it, feed tokens, get logits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skim_runtime.bound_step import EAGER, BoundCache, FixedStep, ort_value, run_options
from skim_runtime.cache import DecoderCache
from skim_runtime.capturing import running
from skim_runtime.errors import UserError
from skim_runtime.interface import Interface
from skim_runtime.interruptible import interruptible
from skim_runtime.load_library import one_line
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.open_session import Kernel, check_options, open_session
from skim_runtime.providers import Provider
from skim_runtime.states import ELEMENT_DTYPES
from skim_runtime.step import PROMPT_CHUNK, as_batch, finite

__all__ = ["Session"]

LONG_BYTES = 1 << 30  # weights read, times tokens: with less, a run is over within a second


class Session:
    """A decoder that skim-export wrote, with its cache; batch size 1.

    The cache holds keys and values, and the states of short convolutions and linear attention where the model has them.
    Several threads may use one session: calls that touch its cache wait for each other.

    A model that was exported for CUDA runs there, its cache stays there, and single tokens are replayed as a CUDA
    graph, unless it has convolutions or linear attention. If that is impossible, a warning says why, and it runs on the
    CPU.

    Some models (LongRoPE) rotate keys and queries otherwise once a text is longer than what they were first trained
    for. The step that makes it so long computes the cache anew from all tokens, since keys of both kinds do not go
    together; logits that were returned before stay what they were. transformers does the same when it generates.

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

        self.vocabulary = self.directory.vocabulary
        self._interface = Interface.read(self._session, self.directory)
        self._rotary_switch = graph.rotary_switch
        self._fixable = graph.rotary_switch is None and self._interface.in_place
        self._cache = DecoderCache(self._interface.states)
        self._lock = threading.Lock()  # of the cache and what is bound to it
        self._past_ids: list[npt.NDArray[np.int64]] = []  # what the cache was computed from
        self._least_mask = 0  # length that the attention mask has at least: asks for the rotary tables of long texts
        self._bound: BoundCache | None = None
        self._fixed: FixedStep | None = None
        self._graph = EAGER  # the number of the last CUDA graph

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
        """Tokens in the cache."""
        return self._cache.length

    def reset(self, capacity: int = 0) -> None:
        """Forget all tokens; room for `capacity` tokens spares the cache from growing later."""
        with self._lock:
            self._past_ids, self._least_mask = [], 0
            if self._fixable and self._bound is not None and self.device != "cpu" and capacity <= self._cache.capacity:
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
        total = self._cache.length + ids.shape[1]
        moved = self._cache.reserve(ids.shape[1])
        if moved:
            self._bound = self._fixed = None
        switched = self._rotary_switch is not None and self._cache.length <= self._rotary_switch < total
        if switched:
            self._least_mask = total
        if self._past_ids and (switched or (moved and self.device != "cpu")):
            self._recompute()
        return _float32(self._append(ids))

    def _recompute(self) -> None:
        """Compute the cache again from its tokens."""
        past, self._past_ids = np.concatenate(self._past_ids, axis=1), []
        self._cache.clear(self._cache.capacity)
        self._bound = self._fixed = None
        for start in range(0, past.shape[1], PROMPT_CHUNK):
            self._append(past[:, start : start + PROMPT_CHUNK])

    def _append(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The logits `[S, V]` of tokens `[1, S]` that the cache has room for, as the graph gives them."""
        if self._bound is None:
            self._bound = BoundCache(self._session, self._interface.states, self._cache, self.device)
        with self._refusals():
            one = self._graphs and self._fixable and ids.shape[1] == 1
            logits = self._replayed(ids, self._bound) if one else self._eager(ids, self._bound.binding)
        self._cache.advance(ids.shape[1])
        self._past_ids.append(ids)
        return logits

    def _eager(self, ids: npt.NDArray[np.int64], binding: Any) -> npt.NDArray[Any]:
        """The logits `[S, V]` of any number of tokens."""
        for name, array in self._interface.feeds(ids, self._cache.length, self._least_mask).items():
            binding.bind_cpu_input(name, array)
        logits = np.empty((*ids.shape, self.vocabulary), ELEMENT_DTYPES[self._interface.logits_type])
        binding.bind_ortvalue_output("logits", ort_value(logits, self._interface.logits_type, "cpu"))
        self._run(ids.shape[1], lambda options: self._session.run_with_iobinding(binding, options))
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
                self._interface.logits_type,
                positions=self._interface.positions,
                device=self.device,
                graph=self._graph,
            )
        return self._fixed.run(int(ids[0, 0]), self._cache.length)

    def logits(self, input_ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Logits, float32 `[S, V]`, of the tokens `[S]` alone; the cache is neither read nor changed.

        Raises:
            UserError: as for `step`.
        """
        ids = as_batch(input_ids, 0, self.context_length, self.vocabulary)
        binding, feeds = self._session.io_binding(), self._interface.feeds(ids, 0)
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for state in self._interface.states:
            feeds[state.past] = state.zeros()  # kept alive here
            binding.bind_ortvalue_input(state.past, ort_value(feeds[state.past], state.element_type, "cpu"))
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


def _float32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    converted: npt.NDArray[np.float32] = array.astype(np.float32, copy=False)
    return converted
