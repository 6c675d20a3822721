"""The rotary embeddings of a GGUF model, in the words of transformers.

Shapes:
    D: rotary dimensions of a head.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from skim_runtime.errors import UserError

from .header import GgufHeader
from .metadata import Metadata

__all__ = ["FACTORS", "rotary"]

LONG, SHORT, LLAMA3 = "rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight"
FACTORS = (LONG, SHORT, LLAMA3)  # tensors that belong to no module
DEFAULT_BASE = 10000.0
CLOSE = 1e-3  # of factors: those computed anew differ from those in the file by rounding


def rotary(metadata: Metadata, header: GgufHeader, head_size: int, size: int) -> dict[str, Any]:
    """`rope_parameters` of config.json.

    Args:
        metadata: of the model's architecture.
        header: of the model.
        head_size: dimensions of a head.
        size: D.

    Raises:
        UserError: the file has scaled embeddings that transformers does not know.
    """
    get = metadata.get
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": get("rope.freq_base", DEFAULT_BASE)}
    if size != head_size:
        parameters["partial_rotary_factor"] = size / head_size
    factor = get("rope.scaling.factor")
    kind = get("rope.scaling.type", "linear" if factor else "none")
    attention = get("rope.scaling.yarn_attn_factor", get("rope.scaling.attn_factor"))
    original = get("rope.scaling.original_context_length")
    betas = {key: get(f"rope.scaling.yarn_{key}") for key in ("beta_fast", "beta_slow")}
    extrapolation = get("rope.scaling.yarn_ext_factor", 1.0)
    if LONG in header.tensors or SHORT in header.tensors:
        scaled = {
            "rope_type": "longrope",
            "long_factor": _decimals(header, LONG, size),
            "short_factor": _decimals(header, SHORT, size),
            "original_max_position_embeddings": original,
            "attention_factor": attention,
        }
    elif LLAMA3 in header.tensors:
        scaled = _llama3(_factors(header, LLAMA3, size), parameters["rope_theta"], header)
    elif kind == "none":
        return parameters
    elif kind == "linear" and factor is not None:
        scaled = {"rope_type": "linear", "factor": factor}
    elif kind == "yarn" and factor is not None and extrapolation == 1:
        scaled = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "attention_factor": attention,
            **betas,
        }
    else:
        raise UserError(f"{header.files[0]}: scaled rotary embeddings of type {kind!r}, factor {factor}, are not known")
    return {**parameters, **{key: value for key, value in scaled.items() if value is not None}}


def _factors(header: GgufHeader, name: str, size: int) -> npt.NDArray[np.float32]:
    """What the frequencies are divided by, float32 `[D / 2]`."""
    tensor = header.tensors.get(name)
    if tensor is None or tensor.shape != (size // 2,):
        found = "is missing" if tensor is None else f"has the shape {list(tensor.shape)}"
        raise UserError(f"{header.files[0]}: the tensor {name} {found}, expected {[size // 2]}")
    return tensor.read()


def _decimals(header: GgufHeader, name: str, size: int) -> list[float]:
    return [float(str(factor)) for factor in _factors(header, name, size)]


def _llama3(factors: npt.NDArray[np.float32], base: float, header: GgufHeader) -> dict[str, Any]:
    """The parameters that give these factors.

    Slow frequencies are divided by `factor`, fast ones are left alone, and between them the inverse of what divides is
    linear in the frequency: that line tells the rest. `low_freq_factor` is taken to be 1, as it is in all of Llama 3,
    since the line stays the same where it and its two fellows grow together.
    """
    factor = float(str(factors.max()))
    frequencies = base ** -(np.arange(len(factors)) / len(factors)) / (2 * math.pi)  # turns in a token
    between = (factors > 1) & (factors < factors.max())
    if factor <= 1 or between.sum() < 2:
        raise UserError(f"{header.files[0]}: the factors in {LLAMA3} are not those of Llama 3")
    smooth = (1 / factors[between].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    slope, start = np.polyfit(frequencies[between], smooth, 1)
    high = 1 - 1 / start
    original = slope * (high - 1)
    high, original = round(float(high), 3), round(float(original))
    smooth = np.clip((original * frequencies - 1) / (high - 1), 0, 1)
    if not np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=CLOSE):
        raise UserError(f"{header.files[0]}: the factors in {LLAMA3} are not those of Llama 3")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
