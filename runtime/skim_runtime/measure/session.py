"""Sessions of onnxruntime whose threads do not disturb what is measured next.

Threads of a session go on spinning for about 35 ms after a call, which would take a core from the next contender;
`session.force_spinning_stop` ends that with the call, while they still spin between the nodes of a call as they do by
default (without any spinning two threads lose much of their worth).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["open_session"]


def open_session(model: bytes, threads: int, library: Path | None, more: Sequence[tuple[str, str]] = ()) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU that leaves the processor to others between two calls.

    Args:
        model: a serialized ONNX model.
        threads: of the session.
        library: with our operators, if the model has any.
        more: further entries of the session's configuration.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for key, value in more:
        options.add_session_config_entry(key, value)
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
