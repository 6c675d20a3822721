"""Ways to multiply on a GPU: the packed kernels, cuBLAS and onnxruntime's MatMulNBits, each on many copies of a layer.

The copies of one contender take more than the last-level cache together, and a call runs all of them one after the
other, as a decoder runs its layers; each has activations of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Protocol

import numpy as np
import torch
from cuda_device import Device, Kernels, Layer

from skim_export.packed import PackedLinear

__all__ = ["Contender", "Dense", "NBits", "Packed", "copies_of", "why_no_nbits"]

COLD = 3  # times the last-level cache
NBITS_BLOCK = 32
NBITS_COPIES, MODEL_BYTES = 24, 1_600_000_000
GRAPHS = "CUDAExecutionProvider"  # the one that has CUDA graphs


class Contender(Protocol):
    """A way to multiply.

    Attributes:
        name: what the table calls it.
        nbytes: of the weights of one copy, with scales and codebooks.
        copies: layers that a call multiplies.
        capturable: whether a CUDA graph can be captured of a call; otherwise it is one already.
    """

    name: str
    nbytes: int
    copies: int
    capturable: bool

    def call(self, tokens: int) -> Callable[[], None]:
        """A call of all copies on `tokens` random tokens each."""

    def error(self, tokens: int) -> float:
        """Relative error of the first copy."""


def copies_of(nbytes: int, device: Device) -> int:
    """So many layers of `nbytes`, two at least, that they are more than `COLD` times what the cache holds."""
    return max(2, COLD * device.cache_bytes // nbytes + 1)


class Packed:
    """The kernels of this project on float16 activations, which `integers` allows to be rounded to integers."""

    capturable = True

    def __init__(
        self, name: str, packed: PackedLinear, kernels: Kernels, device: Device, *, integers: bool = True
    ) -> None:
        self.name, self._kernels, self._device = name, kernels, device
        first = Layer(packed, device, integers)
        self.nbytes, self.copies, self._shape = first.nbytes, copies_of(first.nbytes, device), first.shape
        self._layers = [first, *(first.copy() for _ in range(self.copies - 1))]

    def call(self, tokens: int) -> Callable[[], None]:
        """A call of all copies."""
        x, y = _tensors(self.copies, tokens, self._shape, self._device)

        def call() -> None:
            for layer, of_layer in zip(self._layers, x, strict=True):
                self._kernels.matmul(layer, of_layer, y)

        return call

    def weight(self) -> torch.Tensor:
        """The weights that are meant, float32 `[N, K]` on the device: read by the gathering kernel."""
        rows, columns = self._shape
        ids = torch.arange(rows, device=self._device.place)
        weight = torch.empty(rows, columns, device=self._device.place)
        self._kernels.gather(self._layers[0], ids, weight)
        return weight

    def error(self, tokens: int) -> float:
        """Relative error against torch in float32, with the weights that the gathering kernel reads."""
        x, y = _tensors(1, tokens, self._shape, self._device)
        self._kernels.matmul(self._layers[0], x[0], y)
        return _relative(y, x[0].float() @ self.weight().T)


class Dense:
    """cuBLAS on float16 weights, through torch."""

    name = "cuBLAS float16"
    capturable = True

    def __init__(self, weight: torch.Tensor, device: Device) -> None:
        self._device = device
        first = weight.to(torch.float16)
        self.nbytes = first.nbytes
        self.copies = copies_of(self.nbytes, device)
        self._shape = first.shape[0], first.shape[1]
        self._weights = [first, *(first.clone() for _ in range(self.copies - 1))]

    def call(self, tokens: int) -> Callable[[], None]:
        """A call of all copies."""
        x, y = _tensors(self.copies, tokens, self._shape, self._device)

        def call() -> None:
            for weight, of_layer in zip(self._weights, x, strict=True):
                torch.matmul(of_layer, weight.T, out=y)

        return call

    def error(self, tokens: int) -> float:
        """Relative error against torch in float32."""
        x, y = _tensors(1, tokens, self._shape, self._device)
        torch.matmul(x[0], self._weights[0].T, out=y)
        return _relative(y, x[0].float() @ self._weights[0].T.float())


def why_no_nbits(provider: str) -> str | None:
    """Why MatMulNBits can't be measured, or None if it can."""
    for package in ("onnxruntime", "onnx"):
        if find_spec(package) is None:
            return f"{package} is not installed"
    import onnxruntime

    return None if provider in onnxruntime.get_available_providers() else f"onnxruntime has no {provider}"


class NBits:
    """onnxruntime's MatMulNBits with 4 bits, a session that keeps its own CUDA graph.

    Raises:
        RuntimeError: onnxruntime runs it elsewhere than asked for.
    """

    name = "MatMulNBits 4 bits"
    capturable = False

    def __init__(self, rows: int, columns: int, device: Device) -> None:
        import onnxruntime

        from skim_export.measure.random_layers import model_of, nbits_layer

        self._shape, self._device = (rows, columns), device
        random = np.random.default_rng(0)
        self._layer = nbits_layer(random, rows, columns, 4, NBITS_BLOCK, np.float16)
        self.nbytes = self._layer.nbytes
        # A call costs the time of Python and onnxruntime, which must not count: as many as a model of 2 GB holds.
        self.copies = max(copies_of(self.nbytes, device), min(NBITS_COPIES, MODEL_BYTES // self.nbytes))
        others = (nbits_layer(random, rows, columns, 4, NBITS_BLOCK, np.float16) for _ in range(self.copies - 1))
        self._run_options = onnxruntime.RunOptions()
        options: dict[str, str] = {}
        if device.provider == GRAPHS:
            options = {"enable_cuda_graph": "1", "user_compute_stream": str(device.stream())}
            self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._model = model_of([self._layer, *others], np.float16)
        self._provider = (device.provider, options)

    def call(self, tokens: int) -> Callable[[], None]:
        """A call of the session, all copies on the same tokens."""
        return self._bound(tokens)[0]

    def error(self, tokens: int) -> float:
        """Relative error of some rows against torch in float32."""
        call, x, y = self._bound(tokens)
        call()
        rows, weight = self._layer.sample()
        on_device = torch.from_numpy(weight).to(self._device.place)
        return _relative(y[:, torch.from_numpy(rows)], x.float() @ on_device.T)

    def _bound(self, tokens: int) -> tuple[Callable[[], None], torch.Tensor, torch.Tensor]:
        """A session of its own: a captured graph keeps the addresses and the shape."""
        import onnxruntime

        session = onnxruntime.InferenceSession(self._model, providers=[self._provider])
        if session.get_providers()[0] != self._provider[0]:
            raise RuntimeError(f"onnxruntime could not load {self._provider[0]}")
        x, y = _tensors(1, tokens, self._shape, self._device)
        place = self._device.place.type, self._device.place.index or 0
        binding = session.io_binding()
        binding.bind_input("X", *place, np.float16, tuple(x[0].shape), x.data_ptr())
        for output in session.get_outputs():
            binding.bind_output(output.name, *place, np.float16, tuple(y.shape), y.data_ptr())

        def call(kept: tuple[torch.Tensor, torch.Tensor] = (x, y)) -> None:  # the binding knows no owner
            session.run_with_iobinding(binding, self._run_options)

        return call, x[0], y


def _tensors(copies: int, tokens: int, shape: tuple[int, int], device: Device) -> tuple[torch.Tensor, torch.Tensor]:
    """Random activations `[copies, tokens, K]` and room for one result `[tokens, N]`, float16."""
    rows, columns = shape
    generator = torch.Generator(device.place).manual_seed(tokens)
    x = torch.randn(copies, tokens, columns, generator=generator, dtype=torch.float16, device=device.place)
    return x, torch.full((tokens, rows), torch.nan, dtype=torch.float16, device=device.place)


def _relative(y: torch.Tensor, reference: torch.Tensor) -> float:
    return float(torch.linalg.norm(y.float() - reference) / torch.linalg.norm(reference))
