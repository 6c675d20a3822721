"""What the graph of a decoder takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skim_runtime.errors import UserError
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.states import ELEMENT_TYPES, State

__all__ = ["Interface"]

_INPUTS = {"input_ids", "attention_mask", "position_ids"}
_POSITIONS = ((1,), (3, 1))  # axes before that of the tokens: for a text, or for its time, height and width


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of a session.

    Attributes:
        states: what is kept from step to step.
        positions: axes of the positions before that of the tokens; None if they are no input.
        logits_type: element type of the logits `[1, S, V]`, as ONNX numbers types.
    """

    states: tuple[State, ...]
    positions: tuple[int, ...] | None
    logits_type: int

    @classmethod
    def read(cls, session: Any, directory: ModelDirectory) -> Interface:
        """That of onnxruntime's session.

        Raises:
            UserError: the graph is not that of a text decoder, or does not fit genai_config.json.
        """
        file, states, positions = directory.model_file, [], None
        outputs = {value.name: value for value in session.get_outputs()}
        for value in session.get_inputs():
            state = State.of_input(file, value, directory.head_size)
            if state is not None:
                if state.present not in outputs:
                    raise UserError(f"{file}: has an input {state.past!r}, but no output {state.present!r}")
                states.append(state)
            elif value.name not in _INPUTS:
                raise UserError(f"{file}: has an unknown input {value.name!r}; expected the graph of a text decoder")
            elif value.name == "position_ids":
                positions = next((axes for axes in _POSITIONS if _fits((*axes, None), value.shape)), None)
                if positions is None:
                    raise UserError(f"{file}: position_ids is {value.shape}; expected [1, S] or [3, 1, S], S tokens")
        if "logits" not in outputs or not states:
            raise UserError(f"{file}: has no logits or no past_key_values; expected the graph of a text decoder")
        logits = outputs["logits"]
        if logits.type not in ELEMENT_TYPES or not _fits((1, None, directory.vocabulary), logits.shape):
            raise UserError(
                f"{file}: logits is {logits.type} {logits.shape}; genai_config.json lets one expect 3 axes of which "
                f"the last is {directory.vocabulary}"
            )
        return cls(tuple(states), positions, ELEMENT_TYPES[logits.type])

    @property
    def in_place(self) -> bool:
        """Whether every step can use the same buffers: all states are keys and values."""
        return all(state.grows for state in self.states)

    def feeds(self, ids: npt.NDArray[np.int64], past: int, least_mask: int = 0) -> dict[str, npt.NDArray[np.int64]]:
        """The inputs for tokens `[1, S]` that follow `past` others, apart from states.

        The attention mask is filled up with zeros to `least_mask` tokens.
        """
        total = past + ids.shape[1]
        mask = np.arange(max(total, least_mask)) < total
        feeds = {"input_ids": ids, "attention_mask": mask.astype(np.int64)[None]}
        if self.positions is not None:
            feeds["position_ids"] = np.tile(np.arange(past, total, dtype=np.int64), (*self.positions, 1))
        return feeds


def _fits(sizes: tuple[int | None, ...], shape: list[int | str | None]) -> bool:
    """Whether the axes that both know are the same."""
    return len(sizes) == len(shape) and all(
        size is None or not isinstance(known, int) or known == size for size, known in zip(sizes, shape, strict=True)
    )
