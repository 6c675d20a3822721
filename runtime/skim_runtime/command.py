"""What every command line of the project does with errors."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from skim_runtime.errors import UserError
from skim_runtime.interruptible import ENDING, left_running

__all__ = ["run_command"]

USER_ERROR = 2
SIGNALLED = 128  # plus the signal's number, as shells have it
BROKEN_PIPE = 141  # 128 + SIGPIPE


class Ended(KeyboardInterrupt):
    """A signal asks the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def run_command(name: str, function: Callable[[], None]) -> int:
    """Run a command and return its exit code.

    A `UserError` becomes one line on stderr and code 2; Ctrl-C, SIGTERM and SIGHUP one line and 128 plus the signal's
    number; a reader that went away (`| head`) code 141; warnings become one line each. Other exceptions are bugs and
    pass.
    """
    with warnings.catch_warnings(), _signals():
        warnings.showwarning = lambda message, *_: print(f"{name}: warning: {message}", file=sys.stderr)  # noqa: T201
        try:
            function()
            sys.stdout.flush()
        except UserError as error:
            print(f"{name}: error: {error}", file=sys.stderr)  # noqa: T201
            return USER_ERROR
        except KeyboardInterrupt as error:
            print(f"{name}: interrupted", file=sys.stderr)  # noqa: T201
            code = SIGNALLED + (error.number if isinstance(error, Ended) else signal.SIGINT)
            if left_running():
                sys.stderr.flush()
                os._exit(code)  # all that had to be put in order is, and the usual way would wait for it
            return code
        except BrokenPipeError:
            # Python flushes stdout once more when it exits, which must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
    return 0


@contextmanager
def _signals() -> Iterator[None]:
    """Let the signals that would end the process at once raise an exception; what is ignored (nohup) stays so."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
