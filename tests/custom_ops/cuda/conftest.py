"""The tools that compile the kernels and read their machine code are those of benchmarks/."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
