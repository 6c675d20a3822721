"""Progress on the terminal: a bar a stage, with the time that is left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from skim_runtime.progress import Progress

__all__ = ["ProgressBar"]

REPORTS = 5  # lines a stage where stderr is no terminal


class ProgressBar(Progress):
    """Draws on stderr; where that is no terminal, prints a few lines a stage."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[done]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._stage = ""
        self._total = self._count = 0
        self._started = 0.0

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, stage: str, total: int) -> None:
        """Open a bar."""
        self._task = self._bar.add_task(stage, total=total, done="")
        self._stage, self._total, self._count, self._started = stage, total, 0, time.monotonic()
        self._line("...")

    def step(self, done: str) -> None:
        """Advance the bar."""
        if self._task is not None:
            self._bar.update(self._task, advance=1, done=done)
        self._count += 1
        if REPORTS * self._count // max(1, self._total) > REPORTS * (self._count - 1) // max(1, self._total):
            elapsed = time.monotonic() - self._started
            left = elapsed * max(0, self._total - self._count) / self._count
            self._line(f"{self._count}/{self._total} after {elapsed:.0f} s, about {left:.0f} s left ({done})")

    def finish(self) -> None:
        """Leave the bar full."""
        if self._task is not None:
            self._bar.update(self._task, done="")
        self._task = None

    def _line(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(f"{self._stage}: {text}", highlight=False, soft_wrap=True)
