"""The process in which inputs are tried: what ends it, or never ends, is told by its silence.

Arguments: the name of a target, the directory with its originals, the seed, the first input, the number of inputs, and
the step from one to the next. A line says what is begun, another how it ended.
"""

from __future__ import annotations

import importlib
import logging
import os
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from random import Random

MEMORY = 12 << 30  # bytes of addresses; torch and onnxruntime reserve some that they never use


def main() -> None:
    name, original, seed, first, count, step = sys.argv[1:]
    target = importlib.import_module(f"{__package__}.{name}")
    # Whatever else prints something prints it elsewhere.
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    logging.disable()
    for number in range(int(first), int(first) + int(count), int(step)):
        print("begin", number, file=told)
        place = Path(tempfile.mkdtemp(prefix="skim-fuzz-"))
        try:
            outcome = "accepted" if target.attempt(Path(original), Random(f"{seed} {number}"), place) else "refused"
        except BaseException as error:  # a panic in Rust is no Exception
            where = traceback.extract_tb(error.__traceback__)[-1]
            message = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            outcome = f"finding {message} ({Path(where.filename).name}:{where.lineno})"
        finally:
            shutil.rmtree(place, ignore_errors=True)
        print(outcome, file=told)


if __name__ == "__main__":
    main()
