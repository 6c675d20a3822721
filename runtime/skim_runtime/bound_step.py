"""Steps of a decoder on buffers that stay where they are: the key/value cache, and for CUDA graphs all else as well.

GroupQueryAttention writes new keys and values into the buffers that it reads the past from, if they are the same
memory. A CUDA graph replays what was captured, so it needs the same addresses and the same shapes at every token: its
attention mask is as long as the cache, with zeros behind the tokens so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from skim_runtime.capturing import capturing, running

__all__ = ["EAGER", "ELEMENT_DTYPES", "ELEMENT_TYPES", "BoundCache", "FixedStep", "ort_value", "run_options"]

EAGER = -1  # the number of no graph: what is run with it is neither captured nor replayed
INT64 = 7  # as ONNX numbers types (onnx.TensorProto.DataType)
# The types of caches and logits as onnxruntime names them, and what numpy keeps their bits in.
ELEMENT_TYPES = {"tensor(float)": 1, "tensor(float16)": 10, "tensor(bfloat16)": 16}
ELEMENT_DTYPES: dict[int, type[np.generic]] = {1: np.float32, 10: np.float16, 16: np.uint16}


class BoundCache:
    """The key/value cache in a device's memory, bound as past and present of a session.

    Args:
        session: onnxruntime's.
        names: of the session's inputs, with those of the outputs that are the same memory.
        buffers: of the cache, in the order of the names; on the CPU they are used themselves, elsewhere copies.
        element_type: of the graph's cache, as ONNX numbers types.
        device: "cpu" or "cuda".
    """

    def __init__(
        self,
        session: Any,
        names: Mapping[str, str],
        buffers: Sequence[npt.NDArray[Any]],
        element_type: int,
        device: str,
    ) -> None:
        self._session, self._names = session, names
        self._values = [ort_value(buffer, element_type, device) for buffer in buffers]
        self.binding = self.bound()

    def bound(self) -> Any:
        """A binding of the cache, to which other inputs and outputs are added."""
        binding = self._session.io_binding()
        for (past, present), value in zip(self._names.items(), self._values, strict=True):
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        return binding


class FixedStep:
    """Runs one token at a time, always with the same buffers: what a CUDA graph can be captured of.

    Args:
        session: onnxruntime's.
        cache: bound to it.
        capacity: tokens that the cache has room for.
        vocabulary: number of logits, V.
        logits_type: of the graph's logits, as ONNX numbers types.
        has_position_ids: whether positions are an input of the graph.
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
        has_position_ids: bool,
        device: str,
        graph: int,
    ) -> None:
        self._session = session
        self._binding = cache.bound()
        self._options = run_options(graph)
        self._captured = False
        self._arrays = {"input_ids": np.zeros((1, 1), np.int64), "attention_mask": np.zeros((1, capacity), np.int64)}
        if has_position_ids:
            self._arrays["position_ids"] = np.zeros((1, 1), np.int64)
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
            self._arrays["position_ids"][0, 0] = past
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
