"""Thousands of generations in one process: memory stays as it is."""

import subprocess
import sys

import pytest

GENERATIONS, WARM = 2000, 400
PROGRAM = """
import random, sys
from pathlib import Path
from skim_runtime import Session, generate
from skim_runtime.genai import GenaiSession

def resident():
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))

kind, directory, generations, warm = sys.argv[1:]
draw, session = random.Random(0), {"ort": Session, "genai": GenaiSession}[kind](directory, threads=2)
for number in range(int(generations) + 1):
    if number in (int(warm), int(generations)):
        print(resident())
    prompt = [draw.randrange(2, 300) for _ in range(draw.randrange(1, 80))]
    generate(session, prompt, max_new_tokens=draw.randrange(1, 20), temperature=1.0, seed=number, stop=())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is resident")
@pytest.mark.parametrize("kind", ["ort", pytest.param("genai", marks=pytest.mark.slow)])
def test_memory_stays_flat(packed, kind):
    command = [sys.executable, "-c", PROGRAM, kind, str(packed), str(GENERATIONS), str(WARM)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    early, late = map(int, done.stdout.split())
    assert late < 1.05 * early
