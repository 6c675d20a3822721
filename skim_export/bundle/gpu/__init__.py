"""The generator of GPU kernels: one program for every row class, emitted by TVM as CUDA, OpenCL, Metal and WGSL.

None of the kernels has been run on a GPU. Tests run OpenCL on a CPU (PoCL), WGSL on a software device, and CUDA and
Metal through a C++ compiler with stand-ins for what the languages add; nvcc compiles CUDA for every architecture of its
target. `docs/gpu-kernels.md` tells how to launch them.
"""
