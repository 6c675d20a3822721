"""The work of an export in pieces that any process can do, and the process that does one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from skim_export.work.resources import Resources
from skim_export.work.sealed import is_sealed
from skim_runtime.progress import Progress

__all__ = ["Executor", "SerialExecutor", "Task", "do_tasks"]


@dataclass(frozen=True)
class Task:
    """A piece of work that reads files and leaves others, with the same bytes wherever it is done.

    Attributes:
        name: of what it is about, a layer.
        work: does it; it can be pickled.
        outputs: these files, sealed.
        memory: bytes that it takes beside what a process has from the start, at most.
    """

    name: str
    work: Callable[[], None]
    outputs: tuple[Path, ...]
    memory: int

    @property
    def is_done(self) -> bool:
        """Whether all outputs are there, complete; they are read to find out."""
        return all(is_sealed(path) for path in self.outputs)


class Executor(Protocol):
    """Where tasks are done."""

    @property
    def resources(self) -> Resources:
        """What a task may use."""

    @property
    def tasks_at_once(self) -> int:
        """How many tasks are worked on at the same time."""

    def using(self, resources: Resources) -> Executor:
        """The same with other resources."""

    def run(self, tasks: Sequence[Task]) -> Iterator[str]:
        """Do tasks in any order; the name of each as soon as its outputs are there."""


@dataclass(frozen=True)
class SerialExecutor:
    """This process, which does one task after the other."""

    resources: Resources
    tasks_at_once: int = 1

    def using(self, resources: Resources) -> SerialExecutor:
        """The same with other resources."""
        return replace(self, resources=resources)

    def run(self, tasks: Sequence[Task]) -> Iterator[str]:
        """Do tasks in their order; the name of each when it is done."""
        for task in tasks:
            task.work()
            yield task.name


def do_tasks(stage: str, tasks: Sequence[Task], executor: Executor, progress: Progress) -> None:
    """Do what was not done before.

    Args:
        stage: how the progress calls it.
        tasks: outputs that are there, complete, are left as they are.
        executor: does the others.
        progress: told of every task.

    Raises:
        UserError: of a task, or its executor is lost.
    """
    progress.start(stage, len(tasks))
    missing = []
    for task in tasks:
        if task.is_done:
            progress.step(task.name)
        else:
            missing.append(task)
    for name in executor.run(missing):
        progress.step(name)
    progress.finish()
