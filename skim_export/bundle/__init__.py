"""Device bundles: the model and its operators compiled for a target, without Python, TVM or ONNX Runtime on it.

- `build.py`: bundles by the names of their targets, the way in.
- `target.py`, `targets/`: the machines, one readable file each; `schedule.py`: how their kernels are laid out.
- `lowering.py`, `program.py`: the ONNX decoder as a list of operators; `memory.py`: their buffers and barriers.
- `layout.py`: weights.bin; `abi.py`: the C interface between kernels and runtime.
- `kernels/`: the generator of CPU kernels, compiled by TVM.
- `c/`, `sources.py`: the runtime in C, and the tables that are generated for it.
- `bundle.py`: writes the bundle of a CPU. `gpu/`: the same for GPUs, kernels as source.
"""
