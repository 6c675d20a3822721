"""Kernels that run: on this machine, on a board behind TVM's RPC tracker, or under an emulator."""
