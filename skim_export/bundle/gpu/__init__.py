"""The generator of GPU kernels: one program for every row class, emitted by TVM as CUDA, OpenCL, Metal and WGSL.

The OpenCL kernels run in tests, on a CPU (PoCL). Kernels in the other languages have not been run on a GPU: the CUDA
source is compiled by nvcc for every architecture, the WGSL source is validated and run on a software device, the Metal
source is only checked by its structure.
"""
