"""Measuring and tuning the kernels of device bundles, and what benchmarks/ shares with that.

- `kernels.py`, `emulated.py`, `models.py`, `tables.py`: milliseconds of kernels, their instructions under an emulator,
  tokens per second of whole bundles, and their tables: what `skim-bench` adds to that of the runtime.
- `tune.py`: the search for the fastest schedule.
- `running/`: kernels called here, on boards and under emulators.
- `random_layers.py`, `random_linear.py`, `sessions.py`: random layers, and sessions of them in onnxruntime.

Rounds, reports, tables and everything else that a runtime alone can measure with is in `skim_runtime.measure`.
"""
