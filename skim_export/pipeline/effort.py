"""How much an export does to learn what the model's weights are for."""

from __future__ import annotations

from dataclasses import dataclass

from skim_export.quantize import DEFAULT_METHOD, METHODS, Method, method_named
from skim_runtime.errors import UserError

__all__ = ["DEFAULT_EFFORT", "EFFORTS", "Effort", "effort_named"]


@dataclass(frozen=True)
class Effort:
    """An effort.

    Attributes:
        name: of its method, a key of `METHODS`.
        tune: whether the quantized model is fine-tuned, on more text than calibration takes.
    """

    name: str
    tune: bool = False

    @property
    def method(self) -> Method:
        """What to quantize with."""
        return METHODS[self.name]


EFFORTS = {
    "weights": Effort("weights"),  # nothing but the weights is looked at
    "calibrated": Effort(DEFAULT_METHOD),  # the model reads a text, forwards and backwards
    "tuned": Effort(DEFAULT_METHOD, tune=True),
}
DEFAULT_EFFORT = "calibrated"


def effort_named(name: str, method: str | None = None) -> Effort:
    """One of `EFFORTS`, or calibration with another method.

    Raises:
        UserError: there is none of that name, or the method is given together with another effort than the default.
    """
    if name not in EFFORTS:
        raise UserError(f"--effort {name}: must be one of {', '.join(EFFORTS)}")
    if method is None:
        return EFFORTS[name]
    method_named(method)
    if name != DEFAULT_EFFORT:
        raise UserError(f"--method {method}: cannot be combined with --effort {name}, which has a method of its own")
    return Effort(method)
