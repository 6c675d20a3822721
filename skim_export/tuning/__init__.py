"""Fine-tuning of a quantized model against the full-precision one."""

from .training import HELD_OUT, TuneReport, tune

__all__ = ["HELD_OUT", "TuneReport", "tune"]
