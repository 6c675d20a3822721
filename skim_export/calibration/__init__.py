"""From text to statistics: what the loss minds in every linear layer."""

from .activations import Activations
from .statistics import calibrate
from .sums import LinearStatistics
from .text import self_generated, tokens_from_file, written_text_bytes

__all__ = ["Activations", "LinearStatistics", "calibrate", "self_generated", "tokens_from_file", "written_text_bytes"]
