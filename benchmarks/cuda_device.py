"""What the CUDA benchmark asks of a device, and a GPU through torch."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from typing import Any, Protocol

import torch
from cuda_library import CudaLibrary, LayerFields, PlacedLayer

from skim_export.packed import PackedLinear
from skim_runtime.errors import UserError

__all__ = ["Device", "Gpu", "Kernels", "Layer", "require_gpu"]

# What nvidia-smi is asked for.
FACTS = ("driver_version", "clocks.max.sm", "clocks.max.memory", "power.limit", "clocks.sm", "temperature.gpu")
# Errors of a launch that a user can mend.
CAUSES = {35: "the driver is older than the CUDA of nvcc, update it", 209: "nvcc compiled for another GPU"}


class Device(Protocol):
    """Where tensors lie and kernels run, one after the other on one stream.

    Attributes:
        place: of torch's tensors.
        name: of the model.
        provider: onnxruntime's execution provider for it.
        cache_bytes: size of the last-level cache.
        has_bfloat16: whether kernels for it run there.
    """

    place: torch.device
    name: str
    provider: str
    cache_bytes: int
    has_bfloat16: bool

    def stream(self) -> int:
        """The cudaStream_t that work goes to."""

    def captured(self, call: Callable[[], None]) -> Callable[[], None]:
        """What replays the work of a call as one CUDA graph."""

    def seconds(self, call: Callable[[], None], count: int) -> float:
        """Time that the device takes for `count` calls together."""

    def facts(self) -> dict[str, Any]:
        """What a reader of figures wants to know of it, for JSON."""


def require_gpu() -> None:
    """Raises `UserError` if there is no GPU that torch can use."""
    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise UserError(f"no GPU: torch {torch.__version__} ({build}) finds no CUDA device")


class Gpu:
    """The current CUDA device.

    Raises:
        UserError: there is none that torch can use.
    """

    provider = "CUDAExecutionProvider"

    def __init__(self) -> None:
        require_gpu()
        self.place = torch.device("cuda", torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(self.place)
        self.name = properties.name
        self.cache_bytes = int(properties.L2_cache_size)
        self.architecture = f"sm_{properties.major}{properties.minor}"
        self.has_bfloat16 = properties.major >= 8
        # The default stream can't be captured.
        self._stream = torch.cuda.Stream(self.place)  # type: ignore[no-untyped-call]
        torch.cuda.set_stream(self._stream)

    def stream(self) -> int:
        """The cudaStream_t that work goes to."""
        return int(torch.cuda.current_stream(self.place).cuda_stream)

    def captured(self, call: Callable[[], None]) -> Callable[[], None]:
        """What replays the work of a call as one CUDA graph."""
        call()  # what libraries do once, such as allocating, must not be captured
        torch.cuda.synchronize(self.place)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            call()

        def replay() -> None:
            graph.replay()

        return replay

    def seconds(self, call: Callable[[], None], count: int) -> float:
        """Time between two events around `count` calls."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record(self._stream)
        for _ in range(count):
            call()
        end.record(self._stream)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def facts(self) -> dict[str, Any]:
        """The model, its size, versions, and what nvidia-smi says where it is installed."""
        properties = torch.cuda.get_device_properties(self.place)
        found: dict[str, Any] = {
            "name": self.name,
            "architecture": self.architecture,
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cache_bytes": self.cache_bytes,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        }
        if smi := shutil.which("nvidia-smi"):
            query = [smi, f"--query-gpu={','.join(FACTS)}", "--format=csv,noheader", f"--id=GPU-{properties.uuid}"]
            done = subprocess.run(query, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                values = done.stdout.strip().split(", ")
                found["nvidia-smi"] = dict(zip(FACTS, values, strict=True))
        return found


class Layer:
    """A packed linear on a device.

    Args:
        packed: the packed linear.
        device: where it shall be.
        integers: whether activations may be rounded to integers.

    Attributes:
        shape: N and K.
        nbytes: of its tensors, without the padding that alignment takes.
    """

    def __init__(self, packed: PackedLinear, device: Device, integers: bool = False) -> None:
        self._placed, self._integers = PlacedLayer(packed), integers
        self._content = torch.from_numpy(self._placed.content).to(device.place)
        self.shape = packed.out_features, packed.in_features
        self.nbytes = packed.nbytes
        self.fields: LayerFields = self._placed.fields(self._content.data_ptr(), integers)

    def copy(self) -> Layer:
        """The same weights at another address."""
        other = object.__new__(Layer)
        other.__dict__.update(self.__dict__)
        other._content = self._content.clone()
        other.fields = self._placed.fields(other._content.data_ptr(), self._integers)
        return other


class Kernels:
    """The kernels on torch's tensors.

    Args:
        library: what they were compiled to.
        device: where they run.
    """

    def __init__(self, library: CudaLibrary, device: Device) -> None:
        self._library, self._device = library, device

    def matmul(self, layer: Layer, x: torch.Tensor, y: torch.Tensor, epilogue: str = "store") -> None:
        """Launch y = x W^T, with what `epilogue` makes of it; x `[M, K]` and y `[M, N]` of one type."""
        dtype = str(x.dtype).removeprefix("torch.")
        pointers = x.data_ptr(), dtype, len(x), y.data_ptr(), epilogue
        _check(self._library.matmul(layer.fields, *pointers, self._device.stream()), "matmul")

    def gather(self, layer: Layer, ids: torch.Tensor, y: torch.Tensor) -> None:
        """Launch y[i] = W[ids[i]]; ids int64 `[M]` and y `[M, K]`."""
        dtype = str(y.dtype).removeprefix("torch.")
        pointers = ids.data_ptr(), len(ids), dtype, y.data_ptr()
        _check(self._library.gather(layer.fields, *pointers, self._device.stream()), "gather")


def _check(code: int, what: str) -> None:
    if code in CAUSES:
        raise UserError(f"CUDA error {code}: {CAUSES[code]}")
    if code:
        raise RuntimeError(f"{what} could not be launched: CUDA error {code}")
