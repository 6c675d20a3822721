"""From packed linears to an ONNX decoder: graph, fallback functions, external data."""
