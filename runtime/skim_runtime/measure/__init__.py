"""Measuring: what the command `skim-bench` and the benchmarks of the source tree have in common.

- `cli.py`, `model.py`: the command `skim-bench`, and what it measures of a model.
- `rounds.py`, `child.py`, `decoding.py`: contenders that take turns, processes of their own, one run of a decoder.
- `bandwidth.py`, `session.py`: how fast the threads of a session read memory.
- `report.py`, `tables.py`, `options.py`: facts about the machine and JSON, tables, and what options may be.

What needs more than the runtime, kernels of a target and layers of random weights, is in `skim_export.measure`.
"""
