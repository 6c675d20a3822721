"""The generator of CPU kernels: one program for every instruction set, compiled by TVM."""
