"""The export itself, from a checkpoint to an ONNX model: `export.py` reads the way the data flows."""
