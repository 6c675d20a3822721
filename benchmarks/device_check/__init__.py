"""What a GPU shall be asked in the few minutes that one can be had: docs/cuda.md, "Ten minutes of a GPU"."""
