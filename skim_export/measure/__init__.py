"""Measuring and tuning the kernels of device bundles, and what other measurements share with that.

- `cli.py`, `tables.py`: the command `skim-bench`.
- `kernels.py`, `emulated.py`, `models.py`: milliseconds of kernels, their instructions under an emulator, and tokens
  per second of whole bundles.
- `tune.py`: the search for the fastest schedule.
- `measure/`: kernels called here, on boards and under emulators.
- `random_layers.py`, `sessions.py`, `speed.py`, `child.py`: random layers, sessions of them in onnxruntime, facts about
  the machine, and processes of their own; benchmarks/ uses them, too.
"""
