"""How fast the threads of a session read memory: what the speed of a kernel is compared with.

The operator `ai.skim.measure::ReadMemory` (custom_ops/ort/read_memory.cpp) reads a tensor on the session's own threads
and does next to nothing with it. It is a contender like the kernels, in several ways that take turns with them; the
best of all rounds counts. So a share of it says how near a kernel comes to what the same threads can do at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from skim_runtime.errors import UserError
from skim_runtime.library import library_path
from skim_runtime.load_library import one_line
from skim_runtime.measure.rounds import mean_seconds, take_turns
from skim_runtime.measure.session import open_session
from skim_runtime.onnx_file import ModelProto
from skim_runtime.progress import Progress
from skim_runtime.providers import PROVIDERS

__all__ = ["Bandwidth", "best_reading", "faster", "read_bandwidth", "read_gpu", "readers", "reading_model"]

# The attributes of ReadMemory: places at which a thread reads in turn, bytes that are fetched ahead.
WAYS = tuple(product((1, 2, 4), (0, 2048)))
DOMAIN = "ai.skim.measure"
UINT8, INT64 = 2, 7  # onnx.TensorProto.DataType
INT = 2  # onnx.AttributeProto.AttributeType
READINGS = 5
SECONDS = 0.05  # of one way in a reading
GPU_BYTES = 1 << 30  # many times what a GPU's cache holds
GPU_READINGS = 16  # in one run, so that to begin and to end it does not count
GPU_WAY = "ReadMemory"


@dataclass(frozen=True)
class Bandwidth:
    """How fast memory was read.

    Attributes:
        bytes_per_second: of the fastest way.
        way: which one it was.
    """

    bytes_per_second: float
    way: str


def readers(threads: int, nbytes: int, seconds: float = SECONDS) -> dict[str, Callable[[], float]]:
    """The ways to read `nbytes` bytes by name; each reads for about `seconds` and gives bytes per second.

    Args:
        threads: of the sessions.
        nbytes: several times what fits into the last-level cache.
        seconds: that a call takes.
    """
    data = np.ones(nbytes, np.uint8)  # ones: pages of zeros need not be there
    library = library_path()

    def reader(streams: int, ahead: int) -> Callable[[], float]:
        session = open_session(reading_model(streams, ahead), threads, library)
        return lambda: nbytes / mean_seconds(lambda: session.run(None, {"data": data}), seconds)

    return {_name(streams, ahead): reader(streams, ahead) for streams, ahead in WAYS}


def _name(streams: int, ahead: int) -> str:
    return f"{streams} stream{'s' * (streams > 1)}" + (f", fetched {ahead} bytes ahead" if ahead else "")


def best_reading(found: Mapping[str, Iterable[float]]) -> Bandwidth:
    """The fastest of all readings, bytes per second by way and round."""
    return Bandwidth(*max((max(speeds), way) for way, speeds in found.items()))


def faster(one: Bandwidth | None, other: Bandwidth) -> Bandwidth:
    """The better of two readings, the first of which may be missing."""
    return other if one is None or other.bytes_per_second > one.bytes_per_second else one


def read_bandwidth(progress: Progress, threads: int, nbytes: int) -> Bandwidth:
    """Read memory where nothing else takes turns with it; arguments are those of `readers`."""
    return best_reading(take_turns(readers(threads, nbytes), READINGS, progress, "reading memory"))


def read_gpu(library: Path, *, device: str = "cuda", nbytes: int = GPU_BYTES) -> Bandwidth:
    """Read a GPU's memory by the operator for it, again and again on one stream; the fastest run counts.

    Args:
        library: ours, with kernels for GPUs.
        device: "cuda", or what takes its place.
        nbytes: what is read at once.

    Raises:
        UserError: the GPU has not so much memory, or onnxruntime refuses.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # every node reads
    try:
        options.register_custom_ops_library(str(library))
        model = reading_model(1, 0, GPU_READINGS)
        session = ort.InferenceSession(model, options, providers=[PROVIDERS[device]])
        binding = session.io_binding()
        data = ort.OrtValue.ortvalue_from_shape_and_type((nbytes,), np.uint8, device, 0)
        binding.bind_ortvalue_input("data", data)
        for output in session.get_outputs():
            binding.bind_output(output.name, device)
        found = []
        for _ in range(1 + READINGS):  # the first allocates
            started = time.perf_counter()
            session.run_with_iobinding(binding)
            found.append(GPU_READINGS * nbytes / (time.perf_counter() - started))
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise UserError(f"the GPU's memory can't be read to measure it: {one_line(error)}") from error
    return Bandwidth(max(found), GPU_WAY)


def reading_model(streams: int, ahead: int, times: int = 1) -> bytes:
    """An ONNX model whose nodes, `times` many, give `sum`, `sum1`, .., int64 `[1]`, of `data`, uint8 `[n]`."""
    model = ModelProto(ir_version=10)
    for domain, version in (("", 21), (DOMAIN, 1)):
        model.opset_import.add(domain=domain, version=version)
    graph = model.graph
    graph.name = "reading"
    sums = ["sum", *(f"sum{i}" for i in range(1, times))]
    for output in sums:
        node = graph.node.add(op_type="ReadMemory", domain=DOMAIN, input=["data"], output=[output])
        for name, value in (("streams", streams), ("ahead", ahead)):
            node.attribute.add(name=name, i=value, type=INT)
    outputs = [(graph.output, output, INT64) for output in sums]
    for values, name, element_type in [(graph.input, "data", UINT8), *outputs]:
        tensor = values.add(name=name).type.tensor_type
        tensor.elem_type = element_type
        tensor.shape.dim.add(dim_param=f"{name}_size")
    serialized: bytes = model.SerializeToString()
    return serialized
