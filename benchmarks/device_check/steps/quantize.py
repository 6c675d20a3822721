"""A layer quantized where torch computes on the device: seconds, and its error beside that of the native solver."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
from quantizer import random_layer

from device_check.built import use_built
from device_check.work import Work
from skim_export.quantize import DEFAULT_METHOD, METHODS, QuantizedLinear, quantize_linear
from skim_export.work.device import synchronize
from skim_export.work.resources import Resources
from skim_runtime.errors import UserError
from skim_runtime.measure.tables import say

__all__ = ["run"]

Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]  # as random_layer makes them
BITS = 3
BOUND = 0.01  # by which the error of a layer may be larger than the native solver's: docs/quantizer.md, "On a GPU"


def run(work: Work) -> None:
    """Compare a small layer, then time a large one, cold and once more.

    Raises:
        UserError: the small one lost more than it may.
    """
    use_built(work.directory)
    rows, columns = work.target.sizes.compared
    small = random_layer(rows, columns)
    errors = {}
    found: dict[str, object] = {"bits": BITS, "method": DEFAULT_METHOD, "bound": BOUND, "compared": [rows, columns]}
    codes = []
    for name, resources in (("native", Resources()), ("device", Resources(device=work.target.device.place))):
        quantized = _quantize(small, resources)
        errors[name] = _error(small, quantized)
        codes.append(quantized.codes)
    found |= {
        "error": errors,
        "more": errors["device"] / errors["native"] - 1,
        "same_codes": float(np.mean(codes[0] == codes[1])),
    }
    work.save(found)
    say(f"{rows}x{columns}: {found}")
    if not errors["device"] <= errors["native"] * (1 + BOUND):
        raise UserError(f"the device loses {errors['device']:.6g}, the native solver {errors['native']:.6g}")
    rows, columns = work.target.sizes.quantized
    large, seconds = random_layer(rows, columns), []
    for _ in range(2):
        started = time.perf_counter()
        _quantize(large, Resources(device=work.target.device.place))
        synchronize(work.target.device.place)
        seconds.append(round(time.perf_counter() - started, 2))
        work.save({**found, "quantized": [rows, columns], "seconds": seconds})


def _error(layer: Arrays, quantized: QuantizedLinear) -> float:
    """d^T S^1/2 C S^1/2 d of all rows together, with the differences d: what the method makes small."""
    weight, sensitivity, correlation = layer
    differences = np.sqrt(sensitivity) * (weight - quantized.pack().dequantize())
    return float(np.einsum("nk,nk->", differences @ correlation, differences, dtype=np.float64))


def _quantize(layer: Arrays, resources: Resources) -> QuantizedLinear:
    weight, sensitivity, correlation = layer
    bits = np.full(len(weight), BITS, np.uint8)
    return quantize_linear(
        weight, sensitivity, bits, METHODS[DEFAULT_METHOD], correlation=correlation, resources=resources
    )
