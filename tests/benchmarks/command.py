"""Benchmarks as their users call them."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def benchmark(*arguments, environment=None):
    """Run `python benchmarks ...` and return the finished process."""
    command = [sys.executable, str(BENCHMARKS), *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def refusal(*arguments, environment=None):
    """The one line on stderr of a benchmark that must exit with code 2."""
    done = benchmark(*arguments, environment=environment)
    assert done.returncode == 2, done.stdout + done.stderr
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    return line


def measured(out, *arguments):
    """What a benchmark that must succeed wrote to the JSON file `out`, and what it printed."""
    done = benchmark(*arguments, "--json", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text()), done.stdout
