"""Bundles: a model as C sources, compiled kernels and one file of weights, for devices without Python."""
