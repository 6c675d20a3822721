"""From text to statistics: what the loss minds in every linear layer."""

from .statistics import calibrate
from .sums import LinearStatistics
from .text import self_generated, tokens_from_file

__all__ = ["LinearStatistics", "calibrate", "self_generated", "tokens_from_file"]
