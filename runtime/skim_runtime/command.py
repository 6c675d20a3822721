"""What every command line of the project does with errors."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

from skim_runtime.errors import UserError

__all__ = ["run_command"]

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
BROKEN_PIPE = 141  # 128 + SIGPIPE


def run_command(name: str, function: Callable[[], None]) -> int:
    """Run a command and return its exit code.

    A `UserError` becomes one line on stderr and code 2, Ctrl-C code 130, a reader that went away (`| head`) code 141;
    warnings become one line each. Other exceptions are bugs and pass.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"{name}: warning: {message}", file=sys.stderr)  # noqa: T201
        try:
            function()
            sys.stdout.flush()
        except UserError as error:
            print(f"{name}: error: {error}", file=sys.stderr)  # noqa: T201
            return USER_ERROR
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr)  # noqa: T201
            return INTERRUPTED
        except BrokenPipeError:
            # Python flushes stdout once more when it exits, which must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
    return 0
