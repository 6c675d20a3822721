"""From text to statistics: what the loss minds in every linear layer."""

from .activations import Activations
from .apart import block_statistics, trace_sequences, traced_vocabulary_statistics
from .statistics import calibrate
from .sums import LinearStatistics
from .text import self_generated, tokens_from_file, written_text_bytes

__all__ = [
    "Activations",
    "LinearStatistics",
    "block_statistics",
    "calibrate",
    "self_generated",
    "tokens_from_file",
    "trace_sequences",
    "traced_vocabulary_statistics",
    "written_text_bytes",
]
