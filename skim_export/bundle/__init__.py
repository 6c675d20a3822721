"""Device bundles: the packed model and kernels for it, compiled by TVM, without TVM on the device."""
