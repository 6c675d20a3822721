"""Device bundles: the model and its operators compiled for a target, without Python, TVM or ONNX Runtime on it."""
