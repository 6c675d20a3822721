"""Quantize a language model to any average bit-width and write it as an ONNX model."""
