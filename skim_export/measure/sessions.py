"""Layers inside onnxruntime, and how a call of them is timed.

A model has so many copies of a node, each with weights of its own, that the weights together take several times the
last-level cache, and one call of the session runs all of them one after the other, as a decoder runs its layers. All
copies write to one output buffer that was there before, so nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from skim_export.measure.random_layers import RandomLayer, model_of
from skim_runtime.measure.session import open_session

__all__ = [
    "MANY_TOKENS",
    "Contender",
    "LayerSession",
    "activations",
    "bound_call",
    "cold_layers",
]

MANY_TOKENS = 32  # from here on arithmetic takes longer than reading: one layer is enough
MODEL_LIMIT = 1_500_000_000  # bytes: onnx has models of 2 GiB at most
ACCURACY_BOUNDS = {None: 1e-4, 0: 1e-4, 4: 5e-2}  # relative error by accuracy level


@dataclass(frozen=True)
class Contender:
    """A way to multiply.

    Attributes:
        name: what the table calls it.
        level: the attribute accuracy_level; None if the operator has none.
        layer: makes random weights `[N, K]`.
        options: session options.
    """

    name: str
    level: int | None
    layer: Callable[[np.random.Generator, int, int], RandomLayer]
    options: tuple[tuple[str, str], ...] = ()


def cold_layers(
    layer: Callable[[np.random.Generator, int, int], RandomLayer], rows: int, columns: int, cold: int, seed: int = 0
) -> list[RandomLayer]:
    """So many random layers that they take `cold` bytes together, at least one; no more than a model may have."""
    random = np.random.default_rng(seed)
    layers = [layer(random, rows, columns)]
    while len(layers) * layers[0].nbytes < min(cold, MODEL_LIMIT):
        layers.append(layer(random, rows, columns))
    return layers


class LayerSession:
    """A contender with its session.

    Attributes:
        contender: what it is.
        nbytes: bytes of the weights of one copy.
        copies: nodes with weights of their own.
        error: relative error of the first node against numpy.

    Args:
        contender: what it is.
        layers: its nodes.
        shape: rows and columns of each.
        threads: of the session.
        library: with our operators.
    """

    def __init__(
        self, contender: Contender, layers: Sequence[RandomLayer], shape: tuple[int, int], threads: int, library: Path
    ) -> None:
        self.contender, self.nbytes, self.copies = contender, layers[0].nbytes, len(layers)
        self._rows, self._columns = shape
        level = {} if contender.level is None else {"accuracy_level": contender.level}
        self._session = open_session(model_of(layers, **level), threads, library, contender.options)
        self.error = self._checked(layers[0])

    def _checked(self, layer: RandomLayer) -> float:
        """Relative error for a few tokens, or an exception: the figures of a wrong result are worth nothing."""
        x = activations(3, self._columns)
        rows, weight = layer.sample()
        got = self._session.run(["Y0"], {"X": x})[0][:, rows]
        want = x.astype(np.float64) @ weight.T.astype(np.float64)
        error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
        if not error < ACCURACY_BOUNDS[self.contender.level]:
            raise RuntimeError(
                f"{self.contender.name}, level {self.contender.level}: off by {error:.2g}, more than rounding explains"
            )
        return error

    def call(self, tokens: int) -> Callable[[], None]:
        """A call of all nodes on random activations of so many tokens."""
        return bound_call(self._session, activations(tokens, self._columns), (tokens, self._rows))


def bound_call(session: ort.InferenceSession, x: npt.NDArray[np.float32], shape: tuple[int, int]) -> Callable[[], None]:
    """A call with all outputs in one buffer: the nodes run one after the other, and nobody reads what they write."""
    y = np.empty(shape, np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input("X", x)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu", 0, np.float32, shape, y.ctypes.data)

    def call(kept: tuple[npt.NDArray[np.float32], ...] = (x, y)) -> None:  # the binding knows no owner
        session.run_with_iobinding(binding)

    return call


def activations(tokens: int, columns: int) -> npt.NDArray[np.float32]:
    """Random tokens, float32 `[tokens, columns]`."""
    return np.random.default_rng(tokens).standard_normal((tokens, columns), np.float32)
