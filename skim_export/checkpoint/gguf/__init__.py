"""GGUF files as checkpoints.

Configuration and tokenizer become a small Hugging Face directory, which is what other programs read; tensors are read
where they lie, and nothing of the model's size is written: 7 billion parameters of 4 bits are 28 GB as float32.
"""

from .config import gguf_config
from .directory import CONVERSION, convert_gguf, gguf_directory
from .header import GgufHeader, find_gguf
from .tensors import GgufTensor, gguf_tensors

__all__ = [
    "CONVERSION",
    "GgufHeader",
    "GgufTensor",
    "convert_gguf",
    "find_gguf",
    "gguf_config",
    "gguf_directory",
    "gguf_tensors",
]
