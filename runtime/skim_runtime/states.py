"""What a decoder keeps from step to step, as the graph names it: an output of one step is an input of the next.

The names are those of onnxruntime-genai's model builder. Keys and values, `past_key_values.N.key`, get longer with the
text. Short convolutions, `past.N.conv`, and linear attention, `past.N.recurrent`, keep the same size.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skim_runtime.aligned import aligned_zeros
from skim_runtime.errors import UserError

__all__ = ["ELEMENT_DTYPES", "ELEMENT_TYPES", "State"]

# The types of states and logits as onnxruntime names them, and what numpy keeps their bits in.
ELEMENT_TYPES = {"tensor(float)": 1, "tensor(float16)": 10, "tensor(bfloat16)": 16}
ELEMENT_DTYPES: dict[int, type[np.generic]] = {1: np.float32, 10: np.float16, 16: np.uint16}

_KEY_OR_VALUE = re.compile(r"past_key_values(\.\d+\.(?:key|value))")
_OF_FIXED_SIZE = re.compile(r"past(\.\d+\.(?:conv|recurrent))")
_KEY_RANK = 4  # axes of keys and values
_LARGEST = 1 << 31  # elements


@dataclass(frozen=True)
class State:
    """One of them; it begins with zeros.

    Attributes:
        past: the input's name.
        present: the output's name.
        shape: of one text; of keys and values of one token, `[1, KV heads, 1, head size]`.
        element_type: as ONNX numbers types.
        grows: whether these are keys or values.
    """

    past: str
    present: str
    shape: tuple[int, ...]
    element_type: int
    grows: bool

    @classmethod
    def of_input(cls, file: Path, value: Any, head_size: int) -> State | None:
        """What an input of onnxruntime's session is; None if it is no state.

        Args:
            file: the model, for messages.
            value: the input.
            head_size: of keys and values whose graph leaves that open.

        Raises:
            UserError: its type or its shape is not that of a state.
        """
        growing = _KEY_OR_VALUE.fullmatch(value.name)
        found = growing or _OF_FIXED_SIZE.fullmatch(value.name)
        if found is None:
            return None
        sizes = [1, *value.shape[1:]]  # whatever the graph calls the number of texts
        if growing and len(sizes) == _KEY_RANK:
            sizes[2:] = [1, sizes[3] if isinstance(sizes[3], int) else head_size]
        known = all(isinstance(size, int) and size > 0 for size in sizes) and math.prod(sizes) < _LARGEST
        if value.type not in ELEMENT_TYPES or not known or (growing and len(sizes) != _KEY_RANK):
            expected = "[1, KV heads, S, head size]" if growing else "sizes that are known but for the first"
            raise UserError(f"{file}: {value.name} is {value.type} {value.shape}; expected {expected}")
        return cls(value.name, "present" + found[1], tuple(sizes), ELEMENT_TYPES[value.type], growing is not None)

    def zeros(self, tokens: int = 0) -> npt.NDArray[Any]:
        """A buffer with room for so many tokens, if it grows."""
        shape = (*self.shape[:2], tokens, *self.shape[3:]) if self.grows else self.shape
        return aligned_zeros(shape, ELEMENT_DTYPES[self.element_type])
