"""Steps of a decoder on buffers that stay where they are: its cache, and for CUDA graphs all else as well.

A CUDA graph replays what was captured, so it needs the same addresses and the same shapes at every token: its attention
mask is as long as the cache, with zeros behind the tokens so far. States whose buffers take turns rule it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from skim_runtime.cache import DecoderCache
from skim_runtime.capturing import capturing, running
from skim_runtime.states import ELEMENT_DTYPES, State

__all__ = ["EAGER", "BoundCache", "FixedStep", "ort_value", "run_options"]

EAGER = -1  # the number of no graph: what is run with it is neither captured nor replayed
INT64 = 7  # as ONNX numbers types (onnx.TensorProto.DataType)


class BoundCache:
    """The cache in a device's memory, bound as past and present of a session.

    Args:
        session: onnxruntime's.
        states: of the graph.
        cache: its buffers are used themselves on the CPU, elsewhere copies of them.
        device: "cpu" or "cuda".
    """

    def __init__(self, session: Any, states: Sequence[State], cache: DecoderCache, device: str) -> None:
        self._session, self._states, self._cache = session, states, cache
        self._values = []
        for state, (one, other) in zip(states, cache.buffers, strict=True):
            value = ort_value(one, state.element_type, device)
            self._values.append((value, value if state.grows else ort_value(other, state.element_type, device)))
        self._bindings = [self.bound(turn) for turn in range(1 if all(state.grows for state in states) else 2)]

    @property
    def binding(self) -> Any:
        """The binding whose turn it is."""
        return self._bindings[self._cache.turn % len(self._bindings)]

    def bound(self, turn: int = 0) -> Any:
        """A binding of the cache, to which other inputs and outputs are added."""
        binding = self._session.io_binding()
        for state, values in zip(self._states, self._values, strict=True):
            binding.bind_ortvalue_input(state.past, values[turn])
            binding.bind_ortvalue_output(state.present, values[1 - turn])
        return binding


class FixedStep:
    """Runs one token at a time, always with the same buffers: what a CUDA graph can be captured of.

    Args:
        session: onnxruntime's.
        cache: bound to it; all of its states grow.
        capacity: tokens that the cache has room for.
        vocabulary: number of logits, V.
        logits_type: of the graph's logits, as ONNX numbers types.
        positions: axes of the graph's positions before that of the tokens; None if they are no input.
        device: "cpu" or "cuda".
        graph: the number of the CUDA graph: another one for every cache.
    """

    def __init__(
        self,
        session: Any,
        cache: BoundCache,
        capacity: int,
        vocabulary: int,
        logits_type: int,
        *,
        positions: tuple[int, ...] | None,
        device: str,
        graph: int,
    ) -> None:
        self._session = session
        self._binding = cache.bound()
        self._options = run_options(graph)
        self._captured = False
        self._arrays = {"input_ids": np.zeros((1, 1), np.int64), "attention_mask": np.zeros((1, capacity), np.int64)}
        if positions is not None:
            self._arrays["position_ids"] = np.zeros((*positions, 1), np.int64)
        self._values = {name: ort_value(array, INT64, device) for name, array in self._arrays.items()}
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._room = np.zeros((1, 1, vocabulary), ELEMENT_DTYPES[logits_type])
        self._logits = ort_value(self._room, logits_type, device)
        self._binding.bind_ortvalue_output("logits", self._logits)

    def run(self, token: int, past: int) -> npt.NDArray[Any]:
        """The logits `[1, V]` of a token that follows `past` others."""
        self._arrays["attention_mask"][0] = np.arange(self._arrays["attention_mask"].size) <= past
        self._arrays["input_ids"][0, 0] = token
        if "position_ids" in self._arrays:
            self._arrays["position_ids"][...] = past
        for name, value in self._values.items():
            value.update_inplace(self._arrays[name])
        with running() if self._captured else capturing():
            self._session.run_with_iobinding(self._binding, self._options)
        self._captured = True
        logits: npt.NDArray[Any] = self._logits.numpy()[0]
        return logits


def run_options(graph: int) -> Any:
    """Options of a run that belongs to the CUDA graph of a number; other providers do not look at it."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def ort_value(array: npt.NDArray[Any], element_type: int, device: str) -> Any:
    """An OrtValue over the memory of `array`, which must outlive it; on another device than the CPU over a copy.

    `element_type` is what ONNX takes its elements for.
    """
    import onnxruntime as ort

    if device == "cpu":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, element_type)
    value = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, element_type, device, 0)
    value.update_inplace(array)
    return value
