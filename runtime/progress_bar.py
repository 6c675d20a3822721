"""Progress on the terminal: a bar a stage, with the time that is left."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from skim_runtime.progress import Progress

__all__ = ["ProgressBar"]


class ProgressBar(Progress):
    """Draws on stderr; where that is no terminal, prints a line at the end of each stage."""

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
        if not self._console.is_terminal:
            self._console.print(f"{stage} ({total} steps) ...", highlight=False)

    def step(self, done: str) -> None:
        """Advance the bar."""
        if self._task is not None:
            self._bar.update(self._task, advance=1, done=done)

    def finish(self) -> None:
        """Leave the bar full."""
        if self._task is not None:
            self._bar.update(self._task, done="")
        self._task = None
